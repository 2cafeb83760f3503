"""Kills a process of a move at one of CRIU's moments on this host, or stops it for some seconds: catch.py MOMENT hook|criu|agent|ssh [SECONDS]"""
import os, signal, sys, time

moment, victim = sys.argv[1:3]
seconds = float(sys.argv[3]) if len(sys.argv) > 3 else None
variable = ("CRTOOLS_SCRIPT_ACTION=" + moment).encode()


def read(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def victims(hook):
    if victim == "hook":
        return [hook]
    if victim == "criu":
        return [pid for pid in pids() if read(pid, "comm").strip() == b"criu"]
    if victim == "ssh":
        return [pid for pid in pids() if read(pid, "comm").strip() == b"ssh"]
    return [pid for pid in pids() if read(pid, "cmdline").endswith(b"agent\0--resident\0")]


before = set(pids())
print("ready", flush=True)
end = time.time() + 60
while time.time() < end:
    for pid in set(pids()) - before:
        if read(pid, "cmdline").startswith(b"/run/netmig/moves/") and variable in read(pid, "environ").split(b"\0"):
            found = victims(pid)
            for one in found:
                os.kill(one, signal.SIGSTOP if seconds else signal.SIGKILL)
            if found:
                print("caught", found, flush=True)
                time.sleep(seconds or 0)
                for one in found if seconds else []:
                    try:
                        os.kill(one, signal.SIGCONT)
                    except ProcessLookupError:
                        print("gone", one, flush=True)
                sys.exit(0)
    time.sleep(0.001)
sys.exit("the moment did not come")
