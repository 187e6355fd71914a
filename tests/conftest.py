"""What every test gets."""

import asyncio
import inspect

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Let closed connections end before the loop does, so that a warning about one is about a real leak."""
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test):

        async def drained(*args, **kwargs):
            try:
                return await test(*args, **kwargs)
            finally:
                for _ in range(4):
                    await asyncio.sleep(0)

        pyfuncitem.obj = drained
    return (yield)
