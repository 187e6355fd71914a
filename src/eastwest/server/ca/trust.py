"""The trust bundle of the own trust domain: what it is now, and who hears when it changes."""

from __future__ import annotations

from collections.abc import Callable

from eastwest.spiffe.bundle import Bundle

Listener = Callable[[Bundle], None]


class Trust:
    """Holds the bundle, whose sequence grows with every change and outlives restarts.

    ``tainted_issuing`` are issuing CAs (subject key identifiers in hex, sorted) that nothing should stem from any
    more; a bundle cannot say that, since it names roots only. It changes together with the bundle's sequence.
    """

    def __init__(self, bundle: Bundle, tainted_issuing: tuple[str, ...] = ()) -> None:
        self._bundle = bundle
        self._listeners: list[Listener] = []
        self.tainted_issuing = tainted_issuing

    @property
    def bundle(self) -> Bundle:
        """The bundle as it is now."""
        return self._bundle

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Every trusted root in DER, the tainted ones included."""
        return tuple(authority.der for authority in self._bundle.x509_authorities)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each new bundle, in the order of subscription; what is returned ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def replace(self, bundle: Bundle, tainted_issuing: tuple[str, ...] = ()) -> None:
        """Put a newer bundle in force and tell everybody. Nothing happens where it is the same."""
        if bundle == self._bundle and tainted_issuing == self.tainted_issuing:
            return
        self._bundle, self.tainted_issuing = bundle, tainted_issuing
        for listener in tuple(self._listeners):
            listener(bundle)
