"""Attacks on what a process can see and call: files, processes, the network, the kernel."""

import errno

from cases import Case, ended, filtered, prints, raises, refused

GONE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)
NOWHERE = 0x7FFFFFF0
"""No process has this number."""

FILES = [
    refused("a file of the host", "open({canary!r})", errno.ENOENT),
    refused("the folder of the project", "os.listdir({project!r})", errno.ENOENT),
    refused("/etc/shadow", "open('/etc/shadow')", *GONE),
    refused("/etc/shadow by another way", "open('/proc/self/root' + '/etc/shadow')",
            *GONE),
    refused("a way up out of the root", "open('/' + '../' * 40 + {canary!r})", errno.ENOENT),
    refused("a new file in /", "open('/new', 'w')", errno.EROFS, errno.EACCES),
    refused("a new file in /usr", "open('/usr/new', 'w')", errno.EROFS, errno.EACCES),
    refused("changing a program", "os.open(os.path.realpath(sys.executable), os.O_WRONLY)",
            errno.EROFS, errno.EACCES, errno.ETXTBSY),
    refused("changing one's own program", "os.open('/proc/self/exe', os.O_WRONLY)",
            errno.EROFS, errno.EACCES, errno.ETXTBSY),
    refused("changing the mode of a program", "os.chmod(os.path.realpath(sys.executable), 0o777)",
            errno.EROFS, errno.EPERM),
    refused("removing a library", "os.rename(os.__file__, os.__file__ + '.x')", errno.EROFS,
            errno.EACCES),
    refused("a hard link to a program", "os.link(os.path.realpath(sys.executable), 'mine')",
            errno.EXDEV, errno.EPERM, errno.EROFS),
    refused("a character device", "os.mknod('d', 0o20666, os.makedev(1, 1))", errno.EPERM),
    refused("a block device", "os.mknod('d', 0o60666, os.makedev(8, 0))", errno.EPERM),
    prints("block devices and memory",
           "found = []\nfor n in os.listdir('/dev') + ['sda', 'vda', 'mem', 'kmem', 'port', 'kmsg',"
           " 'fuse', 'kvm', 'loop-control', 'net/tun', 'uinput']:\n"
           "    import stat\n    try: mode = os.stat('/dev/' + n).st_mode\n"
           "    except OSError: continue\n"
           "    if stat.S_ISBLK(mode): found.append(n)\n"
           "    if n in ('mem', 'kmem', 'port', 'kmsg', 'fuse', 'kvm', 'net/tun', 'uinput'):\n"
           "        found.append(n)\nprint(found)", "[]"),
    prints("a program that runs as root",
           "import shutil\nshutil.copy('/usr/bin/true', 'x')\nos.chmod('x', 0o6755)\n"
           "import subprocess\nshutil.copy(shutil.which('cat'), 'cat')\nos.chmod('cat', 0o6755)\n"
           "out = subprocess.check_output(['./cat', '/proc/self/status'], text=True)\n"
           "line = next(l for l in out.splitlines() if l.startswith('Uid'))\n"
           "print('0' in line.split()[1:])", "False"),
    refused("chroot", "os.chroot('.')", errno.EPERM),
    refused("becoming root", "os.setuid(0)", errno.EPERM, errno.EINVAL),
    refused("root's group", "os.setgid(0)", errno.EPERM, errno.EINVAL),
    refused("a disk quota's owner", "os.chown('/', 0, 0)", errno.EPERM, errno.EROFS,
            errno.EINVAL),
    refused("a trusted attribute", "open('f', 'w').close()\nos.setxattr('f', 'trusted.x', b'')",
            errno.EPERM, errno.ENOTSUP),
    refused("a root of another process", "os.listdir('/proc/1/root')", errno.EACCES, errno.EPERM),
    refused("/sys", "open('/sys/kernel/mm/transparent_hugepage/enabled', 'w')", *GONE),
    filtered("pivot_root", 155, 41, "b'.', b'.'"),
    filtered("mount", 165, 40, "b'none', b'.', b'tmpfs', 0, 0"),
    filtered("umount", 166, 39, "b'/nowhere', 0"),
    filtered("open_tree", 428, 428, "-1, 0, -1"),
    filtered("move_mount", 429, 429, "-1, 0, -1, 0, 0"),
    filtered("fsopen", 430, 430, "0, -1"),
    filtered("open_by_handle_at", 304, 265, "-1, 0, 0"),
]  # fmt: skip

PROCESSES = [
    prints("the host's environment",
           "import glob\nseen = str(dict(os.environ))\n"
           "for path in glob.glob('/proc/[0-9]*/environ'):\n"
           "    try: seen += open(path).read()\n    except OSError: pass\n"
           "print('JOURNEYMAN_SECRET' in seen)", "False"),
    refused("the supervisor's environment", "open('/proc/1/environ').read()", errno.EACCES),
    refused("the supervisor's memory", "os.open('/proc/1/mem', os.O_RDWR)", errno.EACCES),
    refused("the supervisor's descriptors", "os.listdir('/proc/1/fd')", errno.EACCES),
    refused("the supervisor's maps", "open('/proc/1/maps').read()", errno.EACCES),
    refused("the supervisor's directory", "os.readlink('/proc/1/cwd')", errno.EACCES),
    prints("processes of the host",
           "pids = [int(p) for p in os.listdir('/proc') if p.isdigit()]\n"
           "print(len(pids) <= 4 and os.getppid() == 1)", "True"),
    prints("killing the supervisor",
           "for n in (9, 15, 19, 2, 11):\n    os.kill(1, n)\nprint('alive')", "alive"),
    prints("killing all", "try: os.kill(-1, 9)\nexcept ProcessLookupError: pass\nprint('alone')",
           "alone"),
    refused("core_pattern", "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)", *GONE),
    prints("any setting of the kernel",
           "opened = []\nfor d, _, names in os.walk('/proc/sys'):\n    for n in names:\n"
           "        try:\n            os.close(os.open(d + '/' + n, os.O_WRONLY | os.O_NONBLOCK))\n"
           "            opened.append(n)\n        except OSError: pass\nprint(opened)", "[]"),
    refused("sysrq", "os.open('/proc/sysrq-trigger', os.O_WRONLY)", *GONE),
    refused("kernel memory", "os.open('/proc/kcore', os.O_RDONLY)", *GONE),
    refused("being spared when memory runs out",
            "open('/proc/self/oom_score_adj', 'w').write('-1000')", *GONE),
    prints("a release_agent",
           "found = [d for d, _, names in os.walk('/sys') if 'release_agent' in names\n"
           "         and os.access(d + '/release_agent', os.W_OK)]\nprint(found)", "[]"),
    refused("a higher priority", "os.setpriority(os.PRIO_PROCESS, 0, -10)",
            errno.EACCES, errno.EPERM),
    refused("real-time scheduling", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(9))",
            errno.EPERM),
    prints("descriptors that were left open",
           "kinds = []\nfor n in range(3, 256):\n"
           "    try: kinds.append(os.readlink(f'/proc/self/fd/{n}').partition(':')[0])\n"
           "    except OSError: pass\nprint(kinds)", "['socket']"),
    refused("a signal by way of a pidfd", "signal.pidfd_send_signal(os.pidfd_open(1), 9)",
            errno.ENOSYS),
]  # fmt: skip

NET = (errno.ENETUNREACH, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
NETWORK = [
    refused("TCP to the host's loopback", "socket.create_connection({tcp!r}, 1)", *NET),
    refused("TCP to the world", "socket.create_connection(('192.0.2.1', 80), 1)", *NET),
    refused("TCP over IPv6", "socket.create_connection(('2001:db8::1', 80), 1)", *NET,
            errno.EAFNOSUPPORT),
    refused("UDP to the world",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
            *NET),
    Case("a name server", "socket.gethostbyname('journeyman.example')", "raises",
         text="gaierror"),
    refused("an abstract socket of the host",
            "socket.socket(socket.AF_UNIX).connect({abstract!r}.encode('latin-1'))",
            errno.ECONNREFUSED),
    refused("the engine's socket", "socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')",
            errno.ENOENT, errno.EACCES),
    refused("netlink", "socket.socket(16, socket.SOCK_RAW, 0)", errno.EAFNOSUPPORT),
    refused("packets", "socket.socket(17, socket.SOCK_RAW, 3)", errno.EAFNOSUPPORT),
    refused("vsock", "socket.socket(40, socket.SOCK_STREAM)", errno.EAFNOSUPPORT),
    refused("the kernel's ciphers", "socket.socket(38, socket.SOCK_SEQPACKET)",
            errno.EAFNOSUPPORT),
    refused("Bluetooth", "socket.socket(31, socket.SOCK_RAW, 1)", errno.EAFNOSUPPORT),
    refused("raw IP", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", errno.EPERM),
    refused("SCTP", "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)",
            errno.EPROTONOSUPPORT),
    filtered("System V shared memory", 29, 194, "0, 0, 0"),
    filtered("System V semaphores", 64, 190, "0, 0, 0"),
    filtered("System V messages", 68, 186, "0, 0"),
    filtered("POSIX messages", 240, 180, "b'x', 0, 0, 0"),
]  # fmt: skip

SYSTEM_CALLS = [
    filtered("ptrace", 101, 117, f"16, {NOWHERE}, 0, 0"),
    filtered("process_vm_readv", 310, 270, f"{NOWHERE}, 0, 0, 0, 0, 0"),
    filtered("process_vm_writev", 311, 271, f"{NOWHERE}, 0, 0, 0, 0, 0"),
    filtered("pidfd_getfd", 438, 438, "-1, -1, 0"),
    filtered("kcmp", 312, 272, f"{NOWHERE}, {NOWHERE}, 0, 0, 0"),
    filtered("unshare of users", 272, 97, "0x10000000"),
    filtered("unshare of mounts", 272, 97, "0x00020000"),
    filtered("unshare of the network", 272, 97, "0x40000000"),
    filtered("clone with new users", 56, 220, "0x10000011, 0, 0, 0, 0"),
    filtered("clone with new processes", 56, 220, "0x20000011, 0, 0, 0, 0"),
    filtered("clone3", 435, 435, "0, 0"),
    filtered("a child whose end wakes its parent", 56, 220, "18, 0, 0, 0, 0"),
    refused("unlocking a terminal", "import fcntl\nfcntl.ioctl(0, 0x40045431, 0)", errno.EPERM),
    refused("the other end of a terminal", "import fcntl\nfcntl.ioctl(0, 0x5441, 0)",
            errno.EPERM),
    filtered("setns", 308, 268, "-1, 0"),
    filtered("bpf", 321, 280, "-1, 0, 0"),
    filtered("io_uring", 425, 425, "0, 0"),
    filtered("perf_event_open", 298, 241, "0, 0, -1, -1, -1"),
    filtered("userfaultfd", 323, 282, "-1"),
    filtered("keyctl", 250, 219, "9999, 0, 0, 0, 0"),
    filtered("add_key", 248, 217, "0, 0, 0, 0, 0"),
    filtered("init_module", 175, 105, "0, 0, 0"),
    filtered("finit_module", 313, 273, "-1, 0, 0"),
    filtered("delete_module", 176, 106, "b'journeyman_no_such_module', 0"),
    filtered("kexec_load", 246, 104, "0, -1, 0, -1"),
    filtered("reboot", 169, 142, "0, 0, 0, 0"),
    filtered("swapon", 167, 224, "b'/nowhere', 0"),
    filtered("acct", 163, 89, "b'/nowhere/at/all'"),
    filtered("a memory file to execute", 319, 279, "b'x', 0"),
    filtered("setting the clock", 227, 112, "9999, 0"),
    filtered("naming the host", 170, 161, "0, -1"),
    filtered("personality", 135, 92, "0xFFFFFFFF"),
    filtered("reading the kernel's log", 103, 116, "9, 0, 0"),
    filtered("fanotify_init", 300, 262, "-1, 0"),
    filtered("a watch on files that others will have", 254, 27, "-1, b'/tmp', 0xFFF"),
    filtered("a call too new to be known", 470, 470, "0, 0, 0"),
    *(
        raises(f"raising {name}",
               f"r = resource\nh = r.getrlimit(r.{name})[1]\nr.setrlimit(r.{name}, (h + 1, h + 1))",
               "not allowed to raise maximum limit")
        for name in ("RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE")
    ),
    ended("a call of x32", "if column: os.kill(os.getpid(), 31)\nlibc.syscall(0x40000000 + 39)",
          31),
    ended("a call of i386",
          "if column: os.kill(os.getpid(), 31)\n"
          "page = mmap.mmap(-1, 4096, prot=7)\npage.write(bytes.fromhex('b814000000cd80c3'))\n"
          "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
          "ctypes.CFUNCTYPE(ctypes.c_int)(at)()", 31),
]  # fmt: skip
