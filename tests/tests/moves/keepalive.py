"""HTTP over connections that are kept, until standard input ends: keepalive.py HOST SIZE. Prints how many answers it checked."""
import http.client
import sys
import threading

host, size = sys.argv[1], int(sys.argv[2])
stop = threading.Event()
counts, errors = [], []


def ask():
    connection = http.client.HTTPConnection(host, 80, timeout=30)
    connection.connect()
    # A connection that breaks is not opened again.
    connection.auto_open = 0
    count = 0
    try:
        while not stop.is_set():
            connection.request("GET", "/page")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or body != b"netmig " * (size // 7) or answer.will_close:
                raise ValueError(f"status {answer.status}, {len(body)} bytes, closing: {answer.will_close}")
            count += 1
            if count == 1:
                print("ready", flush=True)
            stop.wait(0.002)
    except Exception as error:
        errors.append(repr(error))
    counts.append(count)


threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
if errors or 0 in counts:
    sys.exit(f"{errors} {counts}")
print("answers", sum(counts), flush=True)
