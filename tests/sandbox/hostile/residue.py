"""Acts that would leave something behind: processes, output, locks, marks, names, memory, files.

Each runs after `cases.PRELUDE` and `HELPERS`. What it leaves is looked for by `PROBE`, which the
next program runs: it prints what a program can find of its surroundings, and must print the same
after every act as it did before any.
"""

from cases import CPU, MEMORY, SHORT, WALL, Case, ended, prints

HELPERS = """
import fcntl, subprocess
EXIT = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
CLONE = (56, 220)
def wait(): threading.Event().wait(60)
def spin():
    while True: pass
def leaderless(work, before=lambda: None):
    pid = os.fork()
    if not pid:
        before()
        try: threading.Thread(target=work).start()
        except RuntimeError: os._exit(1)  # no place for another thread
        libc.syscall(EXIT, 0)  # ends the first thread alone
    return pid
def dead(pid):
    while b") Z " not in open(f"/proc/{pid}/stat", "rb").read(): time.sleep(0.001)
    return len(os.listdir(f"/proc/{pid}/task"))
"""

PROBE = """
import fcntl, json, os, resource, signal, socket, struct, time
def until(holds):
    end = time.monotonic() + 3  # what was killed just now may still be on its way
    while not holds() and time.monotonic() < end: time.sleep(0.002)
def processes(): return [pid for pid in os.listdir("/proc") if pid.isdigit()]
def lines(name):
    with open(f"/proc/net/{name}") as file: return file.read().splitlines()[1:]
def counts():  # not "orphan", which counts those of the whole host: here they stand in "tcp"
    words = open("/proc/net/sockstat").read().split()
    return [words[2], words[words.index("tw") + 1], len(lines("tcp") + lines("tcp6"))]
until(lambda: len(processes()) <= 3)
until(lambda: counts() == BEFORE if BEFORE else True)
def forks():
    made = []
    try:
        while len(made) < 99:
            pid = os.fork()
            if not pid: signal.pause()
            made.append(pid)
    except OSError: pass
    for pid in made: os.kill(pid, 9)
    for pid in made: os.waitpid(pid, 0)
    return len(made)
def asked(fd, number):
    answer = bytearray(8)
    try: return fcntl.ioctl(fd, number, answer) or answer.hex()
    except OSError as error: return error.errno
def hint(fd):
    try: return fcntl.fcntl(fd, 1035, bytes(8)).hex()  # F_GET_RW_HINT
    except OSError as error: return error.errno
def bound(kind, family, address):
    with socket.socket(family, kind) as one:
        try: one.bind(address)
        except OSError as error: return error.errno
area, fields = os.open("/tmp", os.O_RDONLY), os.stat("/tmp")
disk = os.fstatvfs(area)
limits = (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
# Of the host's locks some can be seen by all: those on what a program has in its hands count.
inodes = [os.stat(at).st_ino for at in (os.__file__, "/usr", "/tmp", 1, 2)]
with open("/proc/locks") as file:
    locks = sum(any(f":{inode} " in line for inode in inodes) for line in file)
seen = {
    "processes": len(processes()), "sockets": counts(), "forks": forks(), "locks": locks,
    "names": [line.split()[7] for line in lines("unix") if len(line.split()) > 7],
    "tcp": lines("tcp") + lines("tcp6"), "udp": lines("udp"),
    "files": os.listdir("/tmp"), "mode": oct(fields.st_mode), "links": fields.st_nlink,
    "recent": abs(time.time() - fields.st_mtime) < 7200, "attributes": os.listxattr("/tmp"),
    "flags": asked(area, 0x80086601), "hint": hint(area), "space": [disk.f_bfree, disk.f_ffree],
    "streams": [[fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, 1032)] for fd in (1, 2)],
    "unread": [asked(fd, 0x541B) for fd in (1, 2)], "open": len(os.listdir("/proc/self/fd")),
    "cwd": os.getcwd(), "umask": os.umask(0o77), "nice": os.nice(0),
    "cpus": len(os.sched_getaffinity(0)), "policy": os.sched_getscheduler(0),
    "limits": [resource.getrlimit(kind) for kind in limits], "environment": sorted(os.environ),
    "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "timer": signal.getitimer(0),
    "session": os.getsid(0) == os.getpid() == os.getpgrp(), "parent": os.getppid(),
    "port": bound(socket.SOCK_STREAM, socket.AF_INET, ("127.0.0.1", 9999)),
    "udp port": bound(socket.SOCK_DGRAM, socket.AF_INET, ("127.0.0.1", 9998)),
    "name": bound(socket.SOCK_STREAM, socket.AF_UNIX, chr(0) + "left"),
}
print(json.dumps(seen))
"""


def probe(before: object = None) -> str:
    """The probe; after an act it waits until there are as many sockets as before it."""
    return f"BEFORE = {before!r}\n{PROBE}"


def leaves(name: str, code: str, text: str = "done", **more: object) -> Case:
    """An act that succeeds; all the same the next program must find nothing of it."""
    return prints(name, f"{HELPERS}{code}\nprint('done')" if text == "done" else HELPERS + code,
                  text, **more)  # fmt: skip


def stopped(name: str, code: str, *reasons: object, **limits: object) -> Case:
    return ended(name, HELPERS + code, *reasons, **limits)  # type: ignore[arg-type]


def denied(name: str, code: str, *errnos: int) -> Case:
    body = "\n".join(f"    {line}" for line in code.splitlines())
    return Case(name, f"{HELPERS}\ntry:\n{body}\nexcept OSError as error:\n"
                f"    assert error.errno in {errnos!r}, error\n    print('refused')",
                "prints", text="refused")  # fmt: skip


PROCESSES = [
    leaves("a process whose first thread has exited", "print(dead(leaderless(wait)))", "2"),
    leaves("a leaderless process that ignores signals",
           "dead(leaderless(wait, lambda: [signal.signal(n, signal.SIG_IGN) for n in (1, 15)]))"),
    leaves("a leaderless daemon",
           "if not os.fork():\n    os.setsid()\n    leaderless(wait)\n    os._exit(0)\nos.wait()"),
    leaves("a leaderless process of a leaderless one",
           "dead(leaderless(lambda: (leaderless(wait), wait())))\ntime.sleep(0.02)"),
    leaves("a leaderless process in a group of its own",
           "dead(leaderless(wait, lambda: os.setpgid(0, 0)))"),
    leaves("a leaderless process with many threads",
           "def many():\n    for _ in range(5): threading.Thread(target=wait).start()\n    wait()\n"
           "dead(leaderless(many))"),
    leaves("as many leaderless processes as there may be",
           "made = 0\ntry:\n    while made < 50: leaderless(wait); made += 1; time.sleep(0.002)\n"
           "except (OSError, RuntimeError): pass"),
    leaves("a leaderless process named like a dead one",
           "dead(leaderless(wait, lambda: libc.prctl(15, b') Z 1 1 (', 0, 0, 0)))"),
    leaves("a name that looks like an account of memory",
           "dead(leaderless(wait, lambda: libc.prctl(15, b'x\\nRssAnon: 0', 0, 0, 0)))"),
    leaves("a leaderless process that keeps on forking",
           "def breed():\n    while True:\n        try:\n            if not os.fork(): wait()\n"
           "        except OSError: time.sleep(0.001)\ndead(leaderless(breed))\ntime.sleep(0.02)"),
    leaves("a leaderless process that becomes a program",
           "leaderless(lambda: os.execv('/bin/sleep', ['sleep', '60']))\ntime.sleep(0.02)"),
    leaves("a child that stopped itself",
           "pid = os.fork()\nif not pid: os.kill(os.getpid(), signal.SIGSTOP)\n"
           "os.waitpid(pid, os.WUNTRACED)"),
    leaves("a child of its parent's parent",
           "if call(CLONE, 0x8000 | 17, 0, 0, 0, 0) == 0: wait()"),
    leaves("a child that ends without a signal",
           "if call(CLONE, 0, 0, 0, 0, 0) == 0: os._exit(0)\ntime.sleep(0.01)"),
    leaves("children that nobody waits for",
           "for _ in range(9):\n    if not os.fork(): os._exit(0)"),
    leaves("orphans that nobody waits for",
           "for _ in range(4):\n    if not os.fork():\n        if not os.fork(): os._exit(0)\n"
           "        os._exit(0)"),
    leaves("children of one that ignores their ends",
           "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nfor _ in range(4):\n"
           "    if not os.fork(): wait()"),
    leaves("programs in a shell's background",
           "os.system('sleep 60 & (sleep 60; echo late) & sh -c \"while :; do :; done\" &')"),
    leaves("threads that run on",
           "for _ in range(5): threading.Thread(target=wait, daemon=True).start()"),
    leaves("a thread that writes for ever",
           "def write():\n    while True: os.write(2, b'x'); time.sleep(0.001)\n"
           "threading.Thread(target=write, daemon=True).start()"),
    leaves("a process handle", "kept = os.pidfd_open(os.getpid())"),
]  # fmt: skip

ACCOUNTS = [
    stopped("a leaderless process that computes", "leaderless(spin)\ntime.sleep(60)", CPU, **SHORT),
    stopped("leaderless processes that share the limit on memory",
            "def hoard():\n    block = bytearray(b'x') * (30 << 20)\n    wait()\n"
            "for _ in range(4): leaderless(hoard)\ntime.sleep(60)", MEMORY, memory_mb=64),
    stopped("many small leaderless hoards",
            "def hoard():\n    block = bytearray(b'x') * (12 << 20)\n    wait()\n"
            "for _ in range(8): leaderless(hoard)\ntime.sleep(60)", MEMORY, memory_mb=64),
    stopped("an interpreter whose first thread has exited",
            "threading.Thread(target=wait).start()\nlibc.syscall(EXIT, 0)", WALL, wall_s=0.4),
    stopped("an interpreter without its first thread that hoards",
            "def hoard():\n    block = bytearray(b'x') * (60 << 20)\n    if not os.fork():\n"
            "        more = bytearray(b'x') * (30 << 20)\n    wait()\n"
            "threading.Thread(target=hoard).start()\nlibc.syscall(EXIT, 0)", MEMORY, memory_mb=128),
]  # fmt: skip
"""Have limits of their own, so that each has a sandbox of its own."""

# Where the pipe is not the program's to open, it reads nothing, and does no harm either.
_BACK = """
def back(fd, flags=os.O_RDONLY):
    try: return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK)
    except PermissionError: return os.open(os.devnull, flags)
def drain(fd):
    got = b""
    try:
        while part := os.read(fd, 65536): got += part
    except BlockingIOError: pass
    return got
"""

STREAMS = [
    Case("reading its own output back",
         f"{HELPERS}{_BACK}\nfor fd in (1, 2):\n    reader = back(fd)\n    for _ in range(300):\n"
         "        os.write(fd, b'stolen')\n        drain(reader)", "bounded"),
    leaves("a reader of its output that is left open", f"{_BACK}\nreaders = [back(1), back(2)]"),
    leaves("a reader of its output in another process",
           f"{_BACK}\ndef read():\n    reader = back(1)\n    while True: drain(reader)\n"
           "dead(leaderless(read))", ""),  # it would steal what the act prints
    leaves("its output opened to read and write", f"{_BACK}\nboth = back(2, os.O_RDWR)"),
    leaves("its output moved elsewhere within the kernel",
           f"{_BACK}\nreader, null = back(2), os.open(os.devnull, os.O_WRONLY)\n"
           "os.write(2, b'x' * 999)\ntry: os.splice(reader, null, 999)\n"
           "except (AttributeError, OSError): pass"),
    leaves("a full pipe",
           "os.set_blocking(2, False)\ntry:\n    for _ in range(90): os.write(2, b'x' * 999)\n"
           "except BlockingIOError: pass  # unless it is read as fast as it fills"),
    leaves("a pipe of one page", "os.set_blocking(1, False)\nfcntl.fcntl(1, 1031, 4096)"),
    leaves("a pipe of packets", "fcntl.fcntl(2, fcntl.F_SETFL, os.O_WRONLY | os.O_DIRECT)"),
    leaves("an output that signals",
           "try: fcntl.fcntl(1, fcntl.F_SETFL, os.O_WRONLY | os.O_ASYNC)\n"
           "except OSError: pass"),
    leaves("an output that is another file", "os.dup2(os.open('f', os.O_CREAT | os.O_WRONLY), 2)"),
    leaves("an output that is shut", "sys.stderr.close()"),
    denied("a lock on its output", "fcntl.flock(1, fcntl.LOCK_EX | fcntl.LOCK_NB)", 38),
    leaves("a lock by byte on its output",
           "try: fcntl.lockf(1, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError: pass"),
]  # fmt: skip

_HOST = "file = open(os.__file__, 'rb')"
MARKS = [
    denied("a lock on a file of the host",
           f"{_HOST}\nfcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", 38),
    denied("a shared lock on a file of the host",
           f"{_HOST}\nfcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)", 38),
    denied("a lock on a directory of the host",
           "fcntl.flock(os.open('/usr', os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)", 38),
    denied("a lock by the call itself", f"{_HOST}\ncall((73, 32), file.fileno(), 6)", 38),
    denied("a lock to write on a file of the host",
           f"{_HOST}\nfcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", 9),
    leaves("a lock to read on a file of the host",
           f"{_HOST}\nfcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)"),
    denied("a lease on a file of the host", f"{_HOST}\nfcntl.fcntl(file, 1024, 0)", 1),
    denied("notices of a directory of the host",
           "fcntl.fcntl(os.open('/usr', os.O_RDONLY), 1026, 1)", 1),
    denied("a file that cannot be changed",
           "file = open('f', 'w')\nfcntl.ioctl(file, 0x40086602, struct.pack('l', 0x10))", 1),
    denied("a file that can only grow",
           "file = open('f', 'w')\nfcntl.ioctl(file, 0x40086602, struct.pack('l', 0x20))", 1),
    denied("a mark on the working directory",
           "fcntl.ioctl(os.open('/tmp', os.O_RDONLY), 0x40086602, struct.pack('l', 0x40))", 1),
    denied("a mark in the 32-bit form",
           "fcntl.ioctl(os.open('/tmp', os.O_RDONLY), 0x40046602, struct.pack('l', 0x40))", 1),
    denied("a project's number on the working directory",
           "fcntl.ioctl(os.open('/tmp', os.O_RDONLY), 0x401C5820, bytes(28))", 1),
    denied("a mark on a file of the host",
           f"{_HOST}\nfcntl.ioctl(file, 0x40086602, struct.pack('l', 0x40))", 1),
    denied("a mark whose number is longer than an int",
           "call((16, 29), os.open('/tmp', os.O_RDONLY), 0x7_4008_6602, 0)", 1),
    denied("a hint how long data lives",
           "fcntl.fcntl(os.open('/tmp', os.O_RDONLY), 1036, struct.pack('Q', 2))", 1),
    denied("a hint on a file of the host",
           f"{_HOST}\nfcntl.fcntl(file, 1036, struct.pack('Q', 2))", 1),
    leaves("attributes of the working directory",
           "try: os.setxattr('/tmp', 'user.note', b'x')\nexcept OSError: pass"),
    leaves("a working directory that nobody may enter", "os.chmod('/tmp', 0)"),
    leaves("a working directory from another time", "os.utime('/tmp', (42, 42))"),
    leaves("a working directory with every special bit", "os.chmod('/tmp', 0o7777)"),
]  # fmt: skip

_PAIR = """
server = socket.socket()
server.bind(("127.0.0.1", 9999))
server.listen()
client = socket.create_connection(("127.0.0.1", 9999))
there, _ = server.accept()
"""
NETWORK = [
    leaves("a port that waits", f"{_PAIR}\nthere.close()\nclient.close()"),
    leaves("a client's port that waits",
           "server = socket.create_server(('127.0.0.1', 9997))\nclient = socket.socket()\n"
           "client.bind(('127.0.0.1', 9999))\nclient.connect(('127.0.0.1', 9997))\n"
           "there, _ = server.accept()\nclient.close()\nthere.close()"),
    leaves("a connection that is half shut", f"{_PAIR}\nthere.shutdown(socket.SHUT_WR)"),
    leaves("a connection with data unread", f"{_PAIR}\nthere.send(b'x' * 99_999)"),
    leaves("a connection that nobody accepted",
           "server = socket.create_server(('127.0.0.1', 9999))\n"
           "clients = [socket.create_connection(('127.0.0.1', 9999)) for _ in range(9)]"),
    leaves("a connection in another process",
           f"{_PAIR}\ndead(leaderless(wait))\nserver.close()\nclient.close()"),
    leaves("a port that is listened to", "kept = socket.create_server(('127.0.0.1', 9999))"),
    leaves("a port of every address", "kept = socket.create_server(('0.0.0.0', 9999))"),
    leaves("a port of version 6",
           "try: kept = socket.create_server(('::1', 9999), family=socket.AF_INET6)\n"
           "except OSError: pass"),
    leaves("a port that may be shared",
           "kept = socket.create_server(('127.0.0.1', 9999), reuse_port=True)"),
    leaves("a datagram's port",
           "kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
           "kept.bind(('127.0.0.1', 9998))\nkept.sendto(b'x', ('127.0.0.1', 9998))"),
    leaves("many ports",
           "kept = [socket.create_server(('127.0.0.1', 0)) for _ in range(60)]"),
    leaves("an abstract name",
           "kept = socket.socket(socket.AF_UNIX)\nkept.bind(chr(0) + 'left')\nkept.listen()"),
    leaves("an abstract name in a leaderless process",
           "kept = socket.socket(socket.AF_UNIX)\nkept.bind(chr(0) + 'left')\nkept.listen()\n"
           "dead(leaderless(wait))\nkept.close()"),
    leaves("a name of the kernel's choice", "kept = socket.socket(socket.AF_UNIX)\nkept.bind('')"),
    leaves("a name among the files",
           "kept = socket.socket(socket.AF_UNIX)\nkept.bind('/tmp/name')\nkept.listen()"),
    leaves("sockets in flight through themselves",
           "ends = socket.socketpair()\n"
           "for each in ends: socket.send_fds(each, [b'x'], [one.fileno() for one in ends])"),
    leaves("a group that is joined",
           "kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
           "group, own = map(socket.inet_aton, ('224.0.0.9', '127.0.0.1'))\n"
           "try: kept.setsockopt(0, 35, group + own)\n"
           "except OSError: pass"),
]  # fmt: skip

STATE = [
    leaves("a timer", "signal.setitimer(signal.ITIMER_REAL, 60, 60)"),
    leaves("blocked signals that wait",
           "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\nos.kill(os.getpid(), 15)"),
    leaves("limits of its own making",
           "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
           "resource.setrlimit(resource.RLIMIT_CPU, (3, 3))"),
    leaves("the lowest priority",
           "os.nice(19)\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"),
    leaves("a policy for idle times", "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))"),
    leaves("another mask and directory",
           "os.umask(0)\nos.mkdir('d')\nos.chdir('d')\nos.rmdir('/tmp/d')"),
    leaves("a changed environment", "os.environ['LEFT'] = '1'\nlibc.setenv(b'LEFT', b'1', 1)"),
    leaves("a signal for its parent's death", "libc.prctl(1, 9, 0, 0, 0)"),
    leaves("memory that no fork gets",
           "block = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
           "block.madvise(10)\nblock.madvise(18)"),
    leaves("memory that is shared", "block = mmap.mmap(-1, 1 << 20)\nblock.write(b'left')"),
    leaves("named memory and semaphores",
           "from multiprocessing import shared_memory, Semaphore\nkept = Semaphore()\n"
           "fd = os.open('/dev/shm/left', os.O_CREAT | os.O_RDWR)\nos.ftruncate(fd, 1 << 20)\n"
           "block = mmap.mmap(fd, 1 << 20)\nblock.write(b'left')",
           without={"docker": "there is no /dev/shm"}),
    leaves("files that are deleted but open",
           "kept = [open(str(n), 'wb') for n in range(9)]\n"
           "for n, each in enumerate(kept): each.write(bytes(99_999)); os.unlink(str(n))"),
    leaves("files that nobody may read",
           "os.makedirs('a/b')\nopen('a/b/f', 'w').close()\n"
           "for path in ('a/b/f', 'a/b', 'a'): os.chmod(path, 0)"),
    leaves("files with names that are no text",
           "open(b'\\xff\\n', 'w').close()\nos.mkfifo(b'\\xfe')"),
    leaves("deep directories",
           "for _ in range(300): os.mkdir('d'); os.chdir('d')"),
    leaves("many files", "for n in range(500): open(str(n), 'w').close()"),
]  # fmt: skip

RESIDUE = [*PROCESSES, *STREAMS, *MARKS, *NETWORK, *STATE]
