"""The system calls that sandboxed code may not make, as BPF programs.

`program` is for all in the sandbox, `branch_program` for what keeps the branches of one session
apart. Both are deny-lists: CPython and what it imports need some 200 calls, and which ones changes
with every libc. What is denied is what has no use to such code and reaches far into the kernel,
other processes, or memory that no other limit counts. Calls newer than the list are denied whole.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
from typing import Any

from journeyman.sandbox.errors import IsolationUnavailable

# A table in words, for the eye.
_DENIED = """
    ptrace process_vm_readv process_vm_writev pidfd_getfd process_madvise process_mrelease kcmp
    unshare setns
    mount umount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick
    mount_setattr name_to_handle_at open_by_handle_at fanotify_init fanotify_mark
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
    io_setup io_submit io_destroy io_cancel io_getevents vmsplice
    add_key request_key keyctl
    init_module finit_module delete_module create_module kexec_load kexec_file_load reboot
    swapon swapoff acct quotactl quotactl_fd syslog nfsservctl lookup_dcookie uselib _sysctl sysfs
    settimeofday clock_settime clock_adjtime adjtimex stime sethostname setdomainname vhangup
    iopl ioperm modify_ldt personality mbind migrate_pages move_pages set_mempolicy
    shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semtimedop semctl
    mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
    memfd_create memfd_secret
""".split()  # noqa: SIM905

# clone's flags for new namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NAMESPACE_FLAGS = (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)
# All families but AF_UNIX, AF_INET and AF_INET6 (whose namespace holds nothing but loopback).
_LOW_FAMILIES = (0, 3, 4, 5, 6, 7, 8, 9)
_HIGHEST_FAMILY = 10
# What inet sockets are for: no more than ICMP, TCP and UDP. To ask for another protocol or type
# (SCTP, DCCP, L2TP, ...) makes the host's kernel load its module.
_HIGHEST_PROTOCOL = 17
_INET_FAMILIES = (2, 10)
_OTHER_TYPES = (5, 6)  # SOCK_SEQPACKET, SOCK_DCCP
_TYPE_MASK = 0xF
# Put characters into the input of a terminal that is shared with the host.
_TERMINAL_INJECTIONS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
# Would stay on a file, and on the directory that all programs of a session get in turn.
_INODE_FLAGS = (0x40086602, 0x40046602, 0x401C5820)  # FS_IOC_SETFLAGS, its 32-bit twin, FSSETXATTR
_DATA_HINTS = (1036, 1038)  # F_SET_RW_HINT, F_SET_FILE_RW_HINT: stay on the inode, the host's too
# Calls are numbered alike on all machines since 424. 462 (mseal) is the newest known to be tame.
_NEWER = range(463, 512)
_NEWER_DENIED = (428, 429, 430, 431, 432, 433, 442, 443, 447, 448, 450, 457, 458)


# The supervisor is asked about these: their first argument is a process.
_GATED = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open")
# Signals whose sender or time the kernel picks: they would reach, or wake, a stopped branch.
_SIGNAL_CONTROLS = (8, 10, 15, 1024, 1026)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
_SIGNAL_OWNERS = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP
# Without these no terminal can be opened: its end would wake whoever leads its session.
_TERMINALS = (0x40045431, 0x5441)  # TIOCSPTLCK, TIOCGPTPEER
# Memory that forks do not get, or get empty: the supervisor is told of it.
_FORK_ADVICE = (10, 18)  # MADV_DONTFORK, MADV_WIPEONFORK
_EXIT_SIGNAL = 0xFF  # of clone's flags: what the parent is sent when the child ends
_DUMPABLE, _SUBREAPER = 4, 36  # prctl's
_RLIMIT_NPROC = 6
# Would change another process of the same user, unless their first argument is 0: the caller.
_OF_OTHERS = (
    "prlimit64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
)


def _library() -> Any:
    """The binding of libseccomp.

    Raises:
        IsolationUnavailable: It, or the library, is missing.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:  # RuntimeError: no libseccomp behind it
        raise IsolationUnavailable(
            f"no seccomp filter can be compiled ({error})",
            "apt-get install libseccomp2, pip install pyseccomp",
        ) from error
    return pyseccomp


@functools.cache
def branch_program() -> bytes:
    """Compiles the filter of interpreters and all they start: it needs a listener.

    Raises:
        IsolationUnavailable: libseccomp or its binding is missing.
    """
    pyseccomp = _library()
    argument, equal = pyseccomp.Arg, pyseccomp.EQ
    deny = pyseccomp.ERRNO(errno.EPERM)
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    # Other ABIs number calls otherwise, which would walk round the list.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for call in _GATED:
        rules.add_rule(pyseccomp.NOTIFY, call)
    for advice in _FORK_ADVICE:
        masked = argument(2, pyseccomp.MASKED_EQ, 0xFFFFFFFF, advice)
        rules.add_rule(pyseccomp.NOTIFY, "madvise", masked)
    # It names no process; it wakes a stopped one; it would tell one what files others had.
    for call in ("pidfd_send_signal", "timer_create", "inotify_add_watch"):
        rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), call)
    low_half = 0xFFFFFFFF
    for call, numbers in (("fcntl", _SIGNAL_CONTROLS), ("ioctl", _SIGNAL_OWNERS + _TERMINALS)):
        for number in numbers:
            rules.add_rule(deny, call, argument(1, pyseccomp.MASKED_EQ, low_half, number))
    # The supervisor ends a stopped branch's children: that must not wake it. (`program` has it that
    # there is no clone3.)
    wakes = argument(0, pyseccomp.MASKED_EQ, _EXIT_SIGNAL, int(signal.SIGCONT))
    rules.add_rule(deny, "clone", wakes)
    for option in (_DUMPABLE, _SUBREAPER):
        masked = argument(0, pyseccomp.MASKED_EQ, low_half, option)
        rules.add_rule(deny, "prctl", masked, argument(1, pyseccomp.NE, 0))
    # The limit on processes is a soft one, for it grows with the branches.
    masked = argument(1, pyseccomp.MASKED_EQ, low_half, _RLIMIT_NPROC)
    rules.add_rule(deny, "prlimit64", masked, argument(2, pyseccomp.NE, 0))
    masked = argument(0, pyseccomp.MASKED_EQ, low_half, _RLIMIT_NPROC)
    rules.add_rule(deny, "setrlimit", masked)
    for call in _OF_OTHERS:
        rules.add_rule(deny, call, argument(0, pyseccomp.GT, 0))
    for call, process in (("setpriority", 0), ("ioprio_set", 1)):
        rules.add_rule(deny, call, argument(0, pyseccomp.NE, process))
        rules.add_rule(deny, call, argument(0, equal, process), argument(1, pyseccomp.GT, 0))
    return _exported(rules)


@functools.cache
def program() -> bytes:
    """Compiles the filter that bubblewrap puts on all in the sandbox.

    Raises:
        IsolationUnavailable: libseccomp or its binding is missing.
    """
    pyseccomp = _library()
    deny, absent = pyseccomp.ERRNO(errno.EPERM), pyseccomp.ERRNO(errno.ENOSYS)
    # Other ABIs (i386's int 80, x32) number calls otherwise, which would walk round the list.
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    denied: set[int] = set(_NEWER_DENIED)
    for name in _DENIED:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number >= 0:  # negative: this machine has no such call
            denied.add(number)
    for number in sorted(denied):
        rules.add_rule(deny, number)
    for number in _NEWER:
        rules.add_rule(absent, number)
    # It needs no right to write: a program could hold a lock on a file of the host.
    rules.add_rule(absent, "flock")
    # clone3 hides its flags behind a pointer, where seccomp cannot look; libc falls back to clone.
    rules.add_rule(absent, "clone3")
    argument = pyseccomp.Arg
    for flag in _NAMESPACE_FLAGS:
        rules.add_rule(deny, "clone", argument(0, pyseccomp.MASKED_EQ, flag, flag))
    family_denied = pyseccomp.ERRNO(errno.EAFNOSUPPORT)
    for call in ("socket", "socketpair"):
        for family in _LOW_FAMILIES:
            rules.add_rule(family_denied, call, argument(0, pyseccomp.EQ, family))
        rules.add_rule(family_denied, call, argument(0, pyseccomp.GT, _HIGHEST_FAMILY))
    protocol_denied = pyseccomp.ERRNO(errno.EPROTONOSUPPORT)
    rules.add_rule(protocol_denied, "socket", argument(2, pyseccomp.GT, _HIGHEST_PROTOCOL))
    for family in _INET_FAMILIES:
        for kind in _OTHER_TYPES:
            rules.add_rule(
                protocol_denied,
                "socket",
                argument(0, pyseccomp.EQ, family),
                argument(1, pyseccomp.MASKED_EQ, _TYPE_MASK, kind),
            )
    low_half = 0xFFFFFFFF  # the kernel looks at no more of an ioctl's number
    for request in _TERMINAL_INJECTIONS + _INODE_FLAGS:
        rules.add_rule(deny, "ioctl", argument(1, pyseccomp.MASKED_EQ, low_half, request))
    for number in _DATA_HINTS:
        rules.add_rule(deny, "fcntl", argument(1, pyseccomp.MASKED_EQ, low_half, number))
    return _exported(rules)


def _exported(rules: object) -> bytes:
    fd = os.memfd_create("seccomp")
    with os.fdopen(fd, "r+b") as file:
        rules.export_bpf(file)  # type: ignore[attr-defined]
        file.seek(0)
        return file.read()
