"""A client of many connections, each of which sends its next text as soon as it has an answer.

    python bench/client.py PORT CONNECTIONS SECONDS < asked.jsonl        # lines: [text, its label]

prints  JSON: requests and errors, the first error, seconds, p50 and p99 in milliseconds. An error is a lost
        request, and whatever is not a 200 with the label. Standard library alone, and little work per
        request: the servers need the cores.
"""

import asyncio
import itertools
import json
import re
import sys
import time

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"connection: *close", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Asks what comes next in `asked` until `end`; appends to `times` and `errors`."""

    def __init__(self, asked, end, times, errors):
        self.asked, self.end, self.times, self.errors = asked, end, times, errors
        self.waits, self.closed = False, asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.ask()

    def ask(self):
        if time.perf_counter() > self.end:
            return self.transport.close()
        request, self.expected = next(self.asked)
        self.got, self.waits, self.start = b"", True, time.perf_counter()
        self.transport.write(request)

    def data_received(self, data):
        self.got += data
        head, blank, body = self.got.partition(b"\r\n\r\n")
        if blank and len(body) >= int(LENGTH.search(head)[1]):
            self.times.append(time.perf_counter() - self.start)
            if head[9:12] != b"200" or self.expected not in body:
                self.errors.append(self.got.decode("utf-8", "replace"))
            self.waits = False
            self.transport.close() if CLOSE.search(head) else self.ask()

    def connection_lost(self, error):
        if self.waits:
            self.errors.append(f"connection lost: {error}")
        self.closed.set_result(None)


async def load(port: int, connections: int, seconds: float, rows: list) -> dict:
    times, errors, asked = [], [], []
    for text, label in rows:
        body = json.dumps({"text": text}, ensure_ascii=False).encode()
        asked.append((b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                      b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
                      f'"label":{json.dumps(label, ensure_ascii=False)}'.encode()))
    asked, start = itertools.cycle(asked), time.perf_counter()

    async def keep():
        while time.perf_counter() < start + seconds:  # werkzeug closes a connection after each answer
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(asked, start + seconds, times, errors), "127.0.0.1", port)
            await connection.closed

    await asyncio.gather(*(keep() for _ in range(connections)))
    taken, times = time.perf_counter() - start, sorted(times) or [float("nan")]
    return {"requests": len(times), "errors": len(errors), "first": errors[:1], "seconds": taken,
            "p50": 1000 * times[len(times) // 2], "p99": 1000 * times[len(times) * 99 // 100]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]),
                                      [json.loads(line) for line in sys.stdin]))))
