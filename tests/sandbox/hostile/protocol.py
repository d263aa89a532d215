"""Attacks on what the host is told, and on what comes before, after and beside a program."""

import base64
import pickle

from cases import Case, ended, prints, refused

from journeyman.sandbox import KilledReason, probes


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('the host unpickled it')",))


PICKLE = base64.b64encode(pickle.dumps(_Bomb())).decode()

PROTOCOL = [
    prints("frames in every descriptor", f"{probes.FORGE}\nprint('true')", "true"),
    prints("a pickle on every way out",
           f"import base64\ndata = base64.b64decode('{PICKLE}')\n"
           "for fd in range(3, 99):\n    try: os.write(fd, data)\n    except OSError: pass\n"
           "print('done')", "done"),
    prints("an answer of the interpreter's own making",
           "frame = sys._getframe()\n"
           "while 'channel' not in frame.f_locals: frame = frame.f_back\n"
           "for junk in (b'', b'null', b'[' * 9999, b'\\xff', b'{}'):\n"
           "    frame.f_locals['channel'].send(junk)\nprint('mine')", "mine"),
    prints("bytes that are no text", "sys.stdout.buffer.write(b'\\xff\\xfe\\x00ok')",
           "\ufffd\ufffd\x00ok"),
    Case("a value whose repr raises", "class A:\n    def __repr__(self): raise MemoryError\nA()",
         "raises", text="MemoryError"),
    Case("a value whose repr is no text", "class A:\n    def __repr__(self): return 1\nA()",
         "raises", text="TypeError"),
    prints("a repr without end", "class A:\n    def __repr__(self): return 'x' * (1 << 24)\n"
           "print('short')\nA()", "short"),
    Case("an exception that will not be printed",
         "class E(Exception):\n    def __str__(self): os._exit\n    __repr__ = None\nraise E",
         "raises", text="E"),
    ended("abort", "os.abort()", 6),
    ended("a segmentation fault", "ctypes.string_at(0)", 11),
    ended("killing oneself", "os.kill(os.getpid(), 9)", 9),
    ended("closing the channel", "os.closerange(3, 99)\ntime.sleep(60)", KilledReason.WALL,
          wall_s=0.4),
    prints("standard streams that are gone",
           "print('first', flush=True)\nsys.stdout = sys.stderr = None", "first"),
    prints("modules that are gone",
           "print('x', flush=True)\nos._exit = os.getpid = None\nsys.modules.clear()", "x"),
    refused("characters for the host's terminal",
            "import fcntl\nfcntl.ioctl(0, 0x5412, b'x')"),
    refused("a terminal to take over", "os.open('/dev/tty', os.O_RDWR)"),
    refused("waking oneself between calls", "call((222, 107), 0, 0, 0)"),
    prints("a subreaper, to hide orphans from the supervisor",
           "print(libc.prctl(36, 1, 0, 0, 0))", "-1"),
    prints("showing oneself to siblings", "print(libc.prctl(4, 1, 0, 0, 0))", "-1"),
]  # fmt: skip
