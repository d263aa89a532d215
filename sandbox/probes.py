"""Snippets that look, from inside a sandbox, for a way out of it.

Each prints JSON; where it lists breaches, an empty list is the right answer. They must stay
harmless without any sandbox: see `journeyman.sandbox.conformance`.
"""

SHARE_MEMORY = """
import os, time
for _ in range(3):
    if not os.fork():
        block = bytearray(b"x") * (30 << 20)
        time.sleep(2)
        os._exit(0)
time.sleep(2)
"""

FORK_SLEEPERS = """
import json, os, time
made = 0
for _ in range(20):
    try:
        pid = os.fork()
    except OSError:
        break
    if not pid:
        time.sleep(5)
        os._exit(0)
    made += 1
print(json.dumps(made))
"""

FILL_DISK = """
import json
error = ""
try:
    for number in range(6):
        with open(f"block{number}", "wb") as file:
            file.write(b"x" * (1 << 19))
except OSError as problem:
    error = str(problem)
print(json.dumps(error))
"""

CONNECT = """
import json, socket
reached = []
for address in {addresses} + [("192.0.2.1", 80)]:
    if isinstance(address, str):
        address, family = address.encode("latin-1"), socket.AF_UNIX
    else:
        address, family = tuple(address), socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(address)
            reached.append(str(address))
        except OSError:
            pass
print(json.dumps(reached))
"""

EXISTING = """
import json, os
print(json.dumps([path for path in {paths} if os.path.exists(path)]))
"""

NAMESPACES = """
import json, os
print(json.dumps([os.readlink("/proc/self/ns/" + kind) for kind in {kinds}]))
"""

SOCKET_FAMILIES = """
import json, socket
made = []
for family in range(64):
    if family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                socket.socket(family, kind).close()
                made.append((family, int(kind)))
            except OSError:
                pass
print(json.dumps(made))
"""

WRITABLE = """
import json, os
found = [
    path for path in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/proc/sys", "/run", "/var")
    if os.access(path, os.W_OK)
]
print(json.dumps(found + ["root"] * (not os.statvfs("/").f_flag & os.ST_RDONLY)))
"""

SYSCTLS = """
import json, os
opened = []
for top in ("/proc/sys", "/sys"):
    for directory, _, files in os.walk(top):
        for name in files:
            path = os.path.join(directory, name)
            # Opened, never written; not the ones whose mere opening may block.
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
                opened.append(path)
            except OSError:
                pass
for path in ("/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg"):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        opened.append(path)
    except OSError:
        pass
print(json.dumps(opened[:20]))
"""

ENVIRONMENTS = """
import glob, json, os
seen = {f"{name}={value}" for name, value in os.environ.items()}
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        with open(path, "rb") as file:
            content = file.read().decode("utf-8", "replace")
        seen.update(content.split(chr(0)))
    except OSError:
        pass
print(json.dumps(sorted(seen)))
"""

PRIVILEGES = """
import json, os
with open("/proc/self/status") as file:
    parts = [line.partition(":") for line in file]
status = {name: value.strip() for name, _, value in parts}
held = [name for name in status if name.startswith("Cap") and int(status[name], 16)]
held += [name for name, good in (("NoNewPrivs", "1"), ("Seccomp", "2")) if status[name] != good]
held += ["root"] * (0 in (os.getuid(), os.geteuid(), os.getgid(), *os.getgroups()))
print(json.dumps(held))
"""

# Arguments that fail anyhow, but with another errno than a filter gives.
SYSTEM_CALLS = """
import ctypes, errno, json, os
nowhere = 0x7FFFFFF0
calls = {
    "unshare": ((272, 97), (0,)),
    "ptrace": ((101, 117), (16, nowhere, 0, 0)),
    "process_vm_readv": ((310, 270), (nowhere, 0, 0, 0, 0, 0)),
    "process_vm_writev": ((311, 271), (nowhere, 0, 0, 0, 0, 0)),
    "pidfd_getfd": ((438, 438), (-1, -1, 0)),
    "setns": ((308, 268), (-1, 0)),
    "clone3": ((435, 435), (0, 0)),
    "io_uring_setup": ((425, 425), (0, 0)),
    "io_uring_register": ((427, 427), (-1, 0, 0, 0)),
    "userfaultfd": ((323, 282), (-1,)),
    "keyctl": ((250, 219), (9999, 0, 0, 0, 0)),
    "perf_event_open": ((298, 241), (0, 0, -1, -1, -1)),
    "open_by_handle_at": ((304, 265), (-1, 0, 0)),
    "memfd_create": ((319, 279), (0, 0)),
    "shmget": ((29, 194), (0, 0, 0)),
    "open_tree": ((428, 428), (-1, 0, -1)),
    "open_tree_attr": ((467, 467), (-1, 0, -1, 0, 0)),
    "clone with a user namespace": ((56, 220), (0x10000000 | 0x200, 0, 0, 0, 0)),
}
column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
allowed = []
for name, (numbers, arguments) in calls.items():
    ctypes.set_errno(0)
    result = libc.syscall(numbers[column], *[ctypes.c_long(item) for item in arguments])
    if result == 0 and "clone" in name:
        os._exit(0)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        allowed.append([name, result, errno.errorcode.get(ctypes.get_errno())])
print(json.dumps(allowed))
"""

ANCESTORS = """
import json, os
reached = []
for pid in [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
    for name, look in (
        ("mem", lambda path: os.close(os.open(path, os.O_RDONLY))),
        ("fd", os.listdir),
        ("root", os.readlink),
        ("environ", lambda path: open(path, "rb").read(1)),
    ):
        try:
            look(f"/proc/{pid}/{name}")
            reached.append(f"{pid}/{name}")
        except OSError:
            pass
print(json.dumps(reached[:20]))
"""

# Signal 0 does nothing but is allowed or refused like any other.
REACH_BRANCH = """
import json, os, signal
reached = []
for name, look in (
    ("kill", lambda: os.kill({pid}, 0)),
    ("killpg", lambda: os.killpg({pid}, 0)),
    ("pidfd", lambda: os.close(os.pidfd_open({pid}))),
    ("mem", lambda: os.close(os.open("/proc/{pid}/mem", os.O_RDONLY))),
    ("fd", lambda: os.listdir("/proc/{pid}/fd")),
    ("environ", lambda: open("/proc/{pid}/environ", "rb").read(1)),
):
    try:
        look()
        reached.append(name)
    except OSError:
        pass
print(json.dumps(reached))
"""

FORGE = """
import json, os, struct
reply = {"exit_status": 0, "value_repr": "'forged'", "truncated": False, "killed": "infra",
         "cpu_s": 999.0, "signal": 9, "ended": True, "nonce": "", "status": 0,
         "value": "'forged'", "cut": False}
body = json.dumps(reply).encode()
for fd in range(3, 256):
    for data in (struct.pack(">I", len(body)) + body, body, b"\\xff\\x00", b"[" * 5000, b"null"):
        try:
            os.write(fd, data)
        except OSError:
            pass
'the truth'
"""
