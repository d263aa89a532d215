"""`journeyman/Files-v0`: a file tree with owners, modes and a quota, and rules about all three."""

from __future__ import annotations

import random

from journeyman.envs.core import ToolEnv
from journeyman.envs.task import Task
from journeyman.envs.tasks.scene import Kinds, Plan, Scene, rules
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools.apis import files
from journeyman.tools.apis.files import File, FilesState

_FOLDERS = ("/reports", "/drafts", "/shared", "/inbox", "/projects", "/team", "/plans", "/notes")
_ROOM = 5000  # characters a quota leaves where it is of no concern


class _Scene(Scene):
    """A tree under construction: four folders, some files of other people."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__(rng, split)
        self.user = self.draw.person()
        self.files: dict[str, File] = {}
        self.folders = rng.sample(_FOLDERS, 4)
        self.missing = next(f for f in _FOLDERS if f not in self.folders)
        self.room = _ROOM
        for _ in range(rng.randint(1, 3)):
            self.file()

    def name(self) -> str:
        """A file name such as "winter-invoice.txt"."""
        return self.draw.document().replace(" ", "-") + ".txt"

    def file(self, text: str = "", folder: str = "", owner: str = "", mode: str = "") -> str:
        """A new file; returns its path."""
        path = f"{folder or self.rng.choice(self.folders)}/{self.name()}"
        text = text or f"The number is {self.draw.number(100, 999)}."
        self.files[path] = File(text, owner or self.user, mode or "read-write")
        return path

    def other(self, path: str) -> str:
        """Another folder than that of the path."""
        return self.rng.choice([f for f in self.folders if f != path.rpartition("/")[0]])

    def plan(self) -> Plan:
        quota = sum(len(f.text) for f in self.files.values()) + self.room
        folders = frozenset((*self.folders, "/"))
        state = FilesState(self.table(self.files), folders, quota, self.user)
        return Plan(self, files.TOOLS, state)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _search(plan: Plan, path: str) -> str:
    """The path, found by the name."""
    (found,) = (p for p in plan.call("search", text=_name(path)) if _name(p) == _name(path))
    return str(found)


# Easy: two or three calls in a row


def _fact(scene: _Scene) -> Task:
    number = scene.draw.number(100, 999)
    path = scene.file(f"In all it came to {number}.")
    plan = scene.plan()
    plan.user(
        'Which number is in the file "{f}"?', 'What does "{f}" say it came to?', f=_name(path)
    )
    plan.call("read_file", path=_search(plan, path))
    plan.answer(number)
    return plan.task("fact")


def _info(scene: _Scene) -> Task:
    path = scene.file(owner=scene.draw.person())
    plan = scene.plan()
    plan.user('Whose file is "{f}"?', 'Who is the owner of the file "{f}"?', f=_name(path))
    plan.answer(plan.call("get_info", path=_search(plan, path))["owner"])
    return plan.task("owner")


def _move(scene: _Scene) -> Task:
    path = scene.file()
    act = scene.rng.choice(("move", "copy"))
    plan = scene.plan()
    plan.user(
        '{w} the file "{f}" into the folder "{d}".',
        'Please {v} "{f}" into "{d}".',
        w=act.title(),
        v=act,
        f=_name(path),
        d=(folder := scene.other(path)),
    )
    plan.call(act, path=_search(plan, path), folder=folder)
    plan.done()
    return plan.task(act)


def _rename(scene: _Scene) -> Task:
    path, name = scene.file(), scene.name()
    plan = scene.plan()
    plan.user(
        'Rename the file "{f}" to "{n}" and make it read-only.',
        'Call the file "{f}" "{n}" from now on, and protect it as read-only.',
        f=_name(path),
        n=name,
    )
    new = plan.call("rename", path=_search(plan, path), name=name)["path"]
    plan.call("set_mode", path=new, mode="read-only")
    plan.done()
    return plan.task("rename")


# Medium: what is found decides, or a tool refuses


def _by_content(scene: _Scene) -> Task:
    """The text says whether the file is to be kept."""
    draft = scene.toss()
    path = scene.file(f"This is {'a draft' if draft else 'final'}.")
    plan = scene.plan()
    plan.user(
        'If the text of "{f}" says draft, delete it; if it says final, move it to "{d}".',
        'Move "{f}" into "{d}" if it says that it is final, or delete it if it is a draft.',
        f=_name(path),
        d=(folder := scene.other(path)),
    )
    found = _search(plan, path)
    plan.call("read_file", path=found)
    if draft:
        plan.call("delete", path=found)
    else:
        plan.call("move", path=found, folder=folder)
    plan.done()
    return plan.task("draft" if draft else "final")


def _protected(scene: _Scene) -> Task:
    """The file may be read-only: the tool says so, and what helps."""
    protected = scene.toss()
    path = scene.file(mode="read-only" if protected else "")
    plan = scene.plan()
    plan.user(
        'Delete the file "{f}"; if it is read-only, make it read-write first.',
        'The file "{f}" must go, even if it is read-only now.',
        f=_name(path),
    )
    found = _search(plan, path)
    if protected:
        plan.refused("delete", path=found)
        plan.call("set_mode", path=found, mode="read-write")
    plan.call("delete", path=found)
    plan.done()
    return plan.task("protected" if protected else "not_protected")


def _missing_folder(scene: _Scene) -> Task:
    path, missing = scene.file(), scene.toss()
    folder = scene.missing if missing else scene.other(path)
    plan = scene.plan()
    plan.user(
        'Move "{f}" into the folder "{d}"; make it if there is none.',
        'Put the file "{f}" into "{d}", a folder you make if it is missing.',
        f=_name(path),
        d=folder,
    )
    found = _search(plan, path)
    if missing:
        plan.refused("move", path=found, folder=folder)
        plan.call("make_folder", folder=folder)
    plan.call("move", path=found, folder=folder)
    plan.done()
    return plan.task("missing_folder" if missing else "existing_folder")


def _quota(scene: _Scene) -> Task:
    """The copy may not fit: then another file has to go first."""
    path, spare = scene.file(), scene.file()
    full = scene.toss()
    scene.room = 5 if full else _ROOM
    plan = scene.plan()
    plan.user(
        'Copy "{f}" into "{d}". If the quota is too small, delete "{g}" first.',
        'Put a copy of "{f}" into "{d}"; only if the quota does not allow it, delete "{g}" '
        "to make room.",
        f=_name(path),
        d=(folder := scene.other(path)),
        g=_name(spare),
    )
    found = _search(plan, path)
    if full:
        plan.refused("copy", path=found, folder=folder)
        plan.call("delete", path=_search(plan, spare))
    plan.call("copy", path=found, folder=folder)
    plan.done()
    return plan.task("over_quota" if full else "in_quota")


def _pointer(scene: _Scene) -> Task:
    """One file names another."""
    number = scene.draw.number(100, 999)
    target = scene.file(f"The code is {number}.")
    path = scene.file(f"See {target}.")
    plan = scene.plan()
    plan.user(
        'The file "{f}" names another file. Which code does that one hold?',
        'Look into "{f}", then into the file that it names: what is the code?',
        f=_name(path),
    )
    plan.call("read_file", path=_search(plan, path))
    plan.call("read_file", path=target)
    plan.answer(number)
    return plan.task("pointer")


# Hard: rules, requests that need no call, users who come back, long programs


def _no_deleting(scene: _Scene) -> Task:
    """A rule forbids to delete, and says where to put things instead."""
    one, other = scene.file(), scene.file()
    trash = f"/trash-{scene.draw.number(100, 999)}"
    scene.folders.append(trash)
    policy = rules(
        scene,
        f'Nothing is deleted: a file that has to go is moved into "{trash}".',
        "Files are not renamed.",
    )
    plan = scene.plan()
    plan.user(
        'Delete the files "{f}" and "{g}".',
        'Please delete "{f}", and "{g}" as well.',
        f=_name(one),
        g=_name(other),
    )
    for path in (one, other):
        plan.call("move", path=_search(plan, path), folder=trash)
    plan.done()
    return plan.task("trash", policy)


def _not_yours(scene: _Scene) -> Task:
    """A rule forbids to change other people's files: a copy is changed instead."""
    own = scene.toss()
    path, name = scene.file(owner="" if own else scene.draw.person()), scene.name()
    folder = scene.other(path)
    policy = rules(
        scene,
        f'You work for "{scene.user}". Files of other owners are not renamed: copy them into '
        f'"{folder}" and rename the copy.',
        "New folders are not made.",
    )
    plan = scene.plan()
    plan.user(
        'Rename the file "{f}" to "{n}".',
        'The file "{f}" should be called "{n}".',
        f=_name(path),
        n=name,
    )
    found = _search(plan, path)
    plan.call("get_info", path=found)
    if not own:
        found = plan.call("copy", path=found, folder=folder)["path"]
    plan.call("rename", path=found, name=name)
    plan.done()
    return plan.task("own_file" if own else "file_of_another", policy)


def _no_call(scene: _Scene) -> Task:
    """The answer is in the question, or a rule says to refuse."""
    path, number = scene.file(), scene.draw.number(100, 999)
    word = scene.rng.choice(("forbidden", "not allowed"))
    secret = path.rpartition("/")[0]
    policy = rules(
        scene,
        f'What is in "{secret}" is not read, moved or changed: call no tool and answer: {word}',
        "What the question itself tells is answered without a call.",
    )
    refuse = scene.toss()
    plan = scene.plan()
    if refuse:
        plan.user(
            'Which number is in the file "{p}"?',
            'Move "{p}" into "{d}".',
            'Delete "{p}".',
            p=path,
            d=scene.other(path),
        )
        plan.answer(word)
        return plan.task("refuse", policy)
    plan.user(
        'My copy of "{f}" says: The number is {n}. Which number does it give?',
        '"{f}" has {n} characters, as you told me. How many were that again?',
        f=_name(path),
        n=number,
    )
    plan.answer(number)
    return plan.task("in_the_question", policy)


def _by_owner(scene: _Scene) -> Task:
    """Every file of a folder is looked at; those of one owner move."""
    source = scene.rng.choice(scene.folders)
    target = scene.other(f"{source}/")
    scene.files = {p: f for p, f in scene.files.items() if not p.startswith(f"{source}/")}
    owner, other = scene.draw.person(), scene.draw.person()
    owners = scene.rng.sample((owner, owner, other, other), 4)[: scene.rng.randint(3, 4)]
    for name in owners:
        scene.file(folder=source, owner=name)
    plan = scene.plan()
    plan.user(
        'Move all files of "{p}" from "{a}" into "{b}".',
        'Whatever belongs to "{p}" in the folder "{a}" should go to "{b}".',
        p=owner,
        a=source,
        b=target,
    )
    listed = plan.call("list_folder", folder=source)["files"]
    infos = {path: plan.call("get_info", path=path) for path in listed}
    for path, info in infos.items():
        if info["owner"] == owner:
            plan.call("move", path=path, folder=target)
    plan.done()
    return plan.task("by_owner")


def _session(scene: _Scene) -> Task:
    """Three user turns about one file; the second meets a refusal."""
    person = scene.draw.person()
    path = scene.file(f"Ask {person}.", mode="read-only")
    name = scene.name()
    text = f"Moved, case {scene.draw.number(100, 999)}."
    plan = scene.plan()
    plan.user(
        'Which file mentions "{p}"? Give its path.',
        'In which file is "{p}" mentioned? Give the path of it.',
        p=person,
    )
    (found,) = plan.call("search", text=person)
    plan.answer(found)
    plan.user(
        'Move it into "{d}"; make it read-write if it must be.',
        'Put it into the folder "{d}", even if you have to make it read-write.',
        d=(folder := scene.other(path)),
    )
    plan.refused("move", path=found, folder=folder)
    plan.call("set_mode", path=found, mode="read-write")
    moved = plan.call("move", path=found, folder=folder)["path"]
    plan.done()
    plan.user('Now write "{t}" into it, and rename it to "{n}".', t=text, n=name)
    plan.call("write_file", path=moved, text=text)
    plan.call("rename", path=moved, name=name)
    plan.done()
    return plan.task("session")


_KINDS: Kinds[_Scene] = {
    "easy": (_fact, _info, _move, _rename),
    "medium": (_by_content, _protected, _missing_folder, _quota, _pointer),
    "hard": (_no_deleting, _not_yours, _no_call, _by_owner, _session),
}


class FilesEnv(ToolEnv):
    """A file tree: 2 to 7 calls a task, none where none is called for."""

    toolset = files.TOOLS
    levels = LEVELS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a tree and a request."""
        kind = rng.choice(_KINDS[level])
        return kind(_Scene(rng, split))
