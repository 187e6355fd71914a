"""Protobuf messages of any type, drawn so that they get past the first check more often than noise would."""

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_F = FieldDescriptor
_BOUNDS = {
    _F.TYPE_INT32: (-(2**31), 2**31 - 1),
    _F.TYPE_SINT32: (-(2**31), 2**31 - 1),
    _F.TYPE_UINT32: (0, 2**32 - 1),
    _F.TYPE_INT64: (-(2**63), 2**63 - 1),
    _F.TYPE_SINT64: (-(2**63), 2**63 - 1),
    _F.TYPE_UINT64: (0, 2**64 - 1),
}
DEPTH = 5


class Words:
    """What fields are filled with: values that mean something to this server, for each kind of field."""

    def __init__(self, texts=(), blobs=()):
        self.texts = st.sampled_from(["", "x", "\0", "a" * 300, "é", "..", "/", "*", "-1", *texts])
        self.blobs = st.sampled_from([b"", b"\0", b"\x30\x80", b"{}", b"[" * 2000, *blobs])


@st.composite
def messages(draw, descriptor: Descriptor, words: Words, depth: int = 0) -> Message:
    """A message of this type. About half of its fields are set; lists have up to three items."""
    message = GetMessageClass(descriptor)()
    chosen = draw(st.lists(st.sampled_from(list(descriptor.fields)), unique=True)) if descriptor.fields else []
    for field in chosen:
        if field.message_type is not None and depth == DEPTH:
            continue
        _set(draw, message, field, words, depth)
    return message


def _set(draw, message, field, words, depth):
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        target = getattr(message, field.name)
        for _ in range(draw(st.integers(0, 3))):
            name = draw(_scalar(key, words))
            if value.message_type is None:
                target[name] = draw(_scalar(value, words))
            elif depth < DEPTH:
                target[name].CopyFrom(draw(messages(value.message_type, words, depth + 1)))
        return
    if field.is_repeated:
        target = getattr(message, field.name)
        for _ in range(draw(st.integers(0, 3))):
            if field.message_type is not None:
                target.append(draw(messages(field.message_type, words, depth + 1)))
            else:
                target.append(draw(_scalar(field, words)))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(draw(messages(field.message_type, words, depth + 1)))
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, draw(_scalar(field, words)))


def _scalar(field, words):
    match field.type:
        case _F.TYPE_STRING:
            return words.texts | st.text(max_size=20)
        case _F.TYPE_BYTES:
            return words.blobs | st.binary(max_size=40)
        case _F.TYPE_BOOL:
            return st.booleans()
        case _F.TYPE_ENUM:
            return st.sampled_from([value.number for value in field.enum_type.values]) | st.integers(-1, 99)
        case _F.TYPE_DOUBLE | _F.TYPE_FLOAT:
            return st.floats(width=32)
    low, high = _BOUNDS[field.type]
    return st.sampled_from([low, high, 0, 1, max(low, -1), 3600]) | st.integers(low, high)


@st.composite
def mutated(draw, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with some of them changed, taken away, doubled or put in."""
    raw = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "drop"])):
            case "flip" if at < len(raw):
                raw[at] ^= draw(st.integers(1, 255))
            case "cut":
                del raw[at:]
            case "insert":
                raw[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "repeat":
                raw[at:at] = raw[max(0, at - 64) : at]
            case "drop":
                del raw[at : at + draw(st.integers(1, 16))]
    return bytes(raw)
