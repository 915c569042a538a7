"""Clients and origins as they are out there: gRPC (grpcio) and WebSockets (websockets), through a meridian between them.

    clients.py serve CERT KEY      origins on loopback; prints their ports as one line of JSON, ends with its standard input
    clients.py check PORT CA       through the proxy on 127.0.0.1:PORT, within TLS that CA vouches for; exit 0 when all went well
"""

import asyncio
import json
import ssl
import sys
import threading
import time
from concurrent import futures

import grpc
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve as serve_websockets

LARGE = bytes(range(256)) * 12_000


def unary(request, context):
    context.set_trailing_metadata((("x-length", str(len(request))),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "für nichts: 100 % broken\nreally")
    if request == b"slow":
        time.sleep(3)
    if request == b"metadata":
        said = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-early", "1"), ("x-raw-bin", b"\x00\xff")))
        return json.dumps([said.get("x-said"), list(said.get("x-some-bin", b""))]).encode()
    return request


def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n
    if request == b"3":
        context.abort(grpc.StatusCode.OUT_OF_RANGE, "no more")


def client_stream(requests, context):
    return b",".join(requests)


def both(requests, context):
    for request in requests:
        yield request[::-1]


def grpc_server(credentials=None):
    server = grpc.server(futures.ThreadPoolExecutor(80), options=(("grpc.max_receive_message_length", 1 << 24),))
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    for service in ("plain.Test", "tls.Test"):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port


async def echo(websocket):
    try:
        async for message in websocket:
            if message == "close":
                await websocket.close(4321, "as you wish")
            elif message == "subprotocol":
                await websocket.send(str(websocket.subprotocol))
            else:
                await websocket.send(message)
    except websockets.ConnectionClosed:
        pass


async def serve(cert, key):
    with open(cert, "rb") as chain, open(key, "rb") as private:
        credentials = grpc.ssl_server_credentials(((private.read(), chain.read()),))
    plain, plain_port = grpc_server()
    secure, secure_port = grpc_server(credentials)
    choose = lambda _, offered: "chat" if "chat" in offered else None
    async with serve_websockets(echo, "127.0.0.1", 0, select_subprotocol=choose, max_size=1 << 24) as server:
        ports = {"plain": plain_port, "tls": secure_port, "websocket": server.sockets[0].getsockname()[1]}
        print(json.dumps(ports), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    plain.stop(None)
    secure.stop(None)


def calls(channel, service):
    """Every kind of call, and how they end."""
    at = lambda name: f"/{service}/{name}"
    one = channel.unary_unary(at("Unary"))
    answer, call = one.with_call(b"hello", timeout=20)
    assert answer == b"hello" and dict(call.trailing_metadata())["x-length"] == "5"
    assert one(LARGE, timeout=20) == LARGE
    assert one(b"", timeout=20) == b""
    assert one(b"x" * 10_000, timeout=20, compression=grpc.Compression.Gzip) == b"x" * 10_000

    answer, call = one.with_call(b"metadata", timeout=20, metadata=(("x-said", "this"), ("x-some-bin", b"\x01\xfe")))
    early = dict(call.initial_metadata())
    assert json.loads(answer) == ["this", [1, 254]], answer
    assert early["x-early"] == "1" and early["x-raw-bin"] == b"\x00\xff", early

    def status(what):
        try:
            what()
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError("it went well")

    assert status(lambda: one(b"fail", timeout=20)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "für nichts: 100 % broken\nreally",
    )
    assert status(lambda: channel.unary_unary(at("Nothing"))(b"", timeout=20))[0] == grpc.StatusCode.UNIMPLEMENTED
    begun = time.monotonic()
    assert status(lambda: one(b"slow", timeout=0.5))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 2.5

    many = channel.unary_stream(at("ServerStream"))
    assert list(many(b"2000", timeout=20)) == [b"%d" % n for n in range(2000)]
    got = []
    assert status(lambda: got.extend(many(b"3", timeout=20)) or [got.append(x) for x in many(b"3", timeout=20)])[
        0
    ] == grpc.StatusCode.OUT_OF_RANGE
    stream = many(b"100000000", timeout=20)
    assert next(stream) == b"0"
    stream.cancel()
    assert status(lambda: list(stream))[0] == grpc.StatusCode.CANCELLED

    sent = [b"%d" % n for n in range(500)]
    assert channel.stream_unary(at("ClientStream"))(iter(sent), timeout=20) == b",".join(sent)
    assert channel.stream_unary(at("ClientStream"))(iter([]), timeout=20) == b""

    # Each message waits for the answer to the one before it.
    turn = threading.Semaphore(1)

    def talk():
        for n in range(200):
            turn.acquire()
            yield b"message %d" % n

    for n, answer in enumerate(channel.stream_stream(at("Both"))(talk(), timeout=20)):
        assert answer == (b"message %d" % n)[::-1]
        turn.release()

    under_way = [one.future(b"%d" % n, timeout=20) for n in range(300)]
    assert [call.result() for call in under_way] == [b"%d" % n for n in range(300)]


def check_grpc(port, ca):
    with open(ca, "rb") as pem:
        credentials = grpc.ssl_channel_credentials(pem.read())
    options = (("grpc.ssl_target_name_override", "site.test"), ("grpc.max_receive_message_length", 1 << 24))
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        for service in ("plain.Test", "tls.Test"):
            calls(channel, service)
            print("gRPC:", service, "is well", flush=True)
        try:
            channel.unary_unary("/nobody.Test/Unary")(b"", timeout=20)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            assert "502 bad gateway" in error.details(), error
        else:
            raise AssertionError("nobody answered")


async def check_websockets(port, ca):
    context = ssl.create_default_context(cafile=ca)

    def opened(**more):
        return connect(
            f"wss://site.test:{port}/ws", ssl=context, host="127.0.0.1", max_size=1 << 24, proxy=None, **more
        )

    async with opened() as socket:
        for message in ("hello", "", "ü" * 1000, b"\x00\xff" * 10, b"", LARGE):
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), 20) == message
        await socket.send(["in ", "three ", "pieces"])
        assert await asyncio.wait_for(socket.recv(), 20) == "in three pieces"
        await asyncio.wait_for(await socket.ping(b"still there"), 20)
        await socket.send("close")
        try:
            await asyncio.wait_for(socket.recv(), 20)
        except websockets.ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4321, "as you wish"), closed
        else:
            raise AssertionError("it stayed open")
    async with opened(subprotocols=["other", "chat"], compression=None) as socket:
        await socket.send("subprotocol")
        assert await asyncio.wait_for(socket.recv(), 20) == "chat"

    async def one(n):
        async with opened() as socket:
            for m in range(20):
                await socket.send(f"{n} {m}")
                assert await asyncio.wait_for(socket.recv(), 20) == f"{n} {m}"

    await asyncio.gather(*(one(n) for n in range(50)))
    print("WebSockets are well", flush=True)


if __name__ == "__main__":
    what, first, second = sys.argv[1:]
    if what == "serve":
        asyncio.run(serve(first, second))
    else:
        check_grpc(int(first), second)
        asyncio.run(check_websockets(int(first), second))
