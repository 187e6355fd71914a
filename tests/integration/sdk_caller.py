"""A workload that calls, in a process of its own: `sdk_caller.py SOCKET`. Takes JSON by line, answers each by one."""

import asyncio
import json
import sys

import httpx

from eastwest import errors
from eastwest.sdk.httpx import TokenNotGiven, client, client_for, request_token, with_token
from eastwest.sdk.source import RuleSource


class Caller:
    """Carries out what it is told."""

    def __init__(self, source: RuleSource) -> None:
        self.source = source
        self.clients: dict[tuple[str, str], httpx.AsyncClient] = {}
        self.endpoint: httpx.AsyncClient | None = None

    def client(self, server: str, url: str) -> httpx.AsyncClient:
        if (server, url) not in self.clients:
            self.clients[server, url] = client(self.source, server, url)
        return self.clients[server, url]

    async def call(self, server: str, url: str, method: str, path: str, headers=(), token: str = "") -> dict:
        brought = [*map(tuple, headers), *with_token(token).items()] if token else [*map(tuple, headers)]
        try:
            answer = await self.client(server, url).request(method, path, headers=brought)
        except httpx.HTTPError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"status": answer.status_code, "code": answer.headers.get("x-eastwest-code", ""), "body": answer.json()}

    async def calls_until_renewed(self, **call) -> dict:
        """One after the other, until some have shown a newer SVID."""
        seen: dict[str, int] = {}
        held, after = self.source.identity, 0
        async with asyncio.timeout(50):
            while after < 20:
                answer = await self.call(**call)
                word = str(answer.get("status", answer))
                seen[word] = seen.get(word, 0) + 1
                after += self.source.identity is not held
        return seen

    async def token(self, operation: str, **more) -> dict:
        await self.source.ready()
        endpoint = self.endpoint = self.endpoint or client_for(self.source, "eastwest")
        try:
            return {"token": await request_token(endpoint, "td.test", operation, **more)}
        except TokenNotGiven as refused:
            return {"error": refused.error, "reason": refused.reason, "approval": refused.approval}

    async def call_until(self, status: int, **call) -> dict:
        """Again and again until the answer has this status."""
        async with asyncio.timeout(40):
            while (answer := await self.call(**call)).get("status") != status:
                await asyncio.sleep(0.1)  # whom it waits for are other processes
        return answer

    async def me(self) -> dict:
        return {"id": str(self.source.identity.id)}


async def main(socket: str) -> None:
    loop = asyncio.get_running_loop()
    async with RuleSource(socket) as source:
        async with asyncio.timeout(20):
            await source.until(lambda: source.identity is not None)
        print("ready", flush=True)
        caller = Caller(source)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            try:
                answer = await getattr(caller, asked.pop("do"))(**asked)
            except errors.Error as error:
                answer = {"error": error.code, "message": error.message}
            print(json.dumps(answer), flush=True)
        for each in (*caller.clients.values(), *([caller.endpoint] if caller.endpoint else [])):
            await each.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
