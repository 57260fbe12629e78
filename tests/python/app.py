"""The smallest ASGI application; says who answered.

uvicorn --app-dir tests/python app:app --fd 3

FAIL=CODE makes it exit before it listens; FAIL_SLOT=N only in slot N.
"""

import os

if os.environ.get("FAIL") and os.environ.get("FAIL_SLOT") in (None, os.environ.get("PHALANX_SLOT")):
    os._exit(int(os.environ["FAIL"]))

WORKER = str(os.getpid()).encode()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"6"), (b"x-worker", WORKER)]
    headers += [(name, value) for name, value in scope["headers"] if name == b"x-nonce"]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello\n"})
