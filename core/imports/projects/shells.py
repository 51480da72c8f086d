"""Splits scripts of bash, cmd, PowerShell and notebook cells into the words of their commands. Nothing is run: variables that the text
sets are filled in, everything else that a shell would compute stays as it is written, between the marks UNSET and END."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Shell = Literal["bash", "cmd", "powershell"]
Value = str | list[str]

UNSET, END = "\ue000", "\ue001"
UNRESOLVED = re.compile(f"{UNSET}([^{UNSET}{END}]*){END}")
MOST_EXPANDED = 1_000_000  # characters that variables add: A=$A$A doubles with each line
_TYPOGRAPHY = str.maketrans({
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "\u00a0": " ", "\u202f": " ", "\u200b": None, "\ufeff": None,
    UNSET: None, END: None, "\0": None, "\r": None,
})  # fmt: skip
_DASH = re.compile(r"(?<!\S)[–—−](?:[–—−-])?(?=[A-Za-z])")
_CELL = re.compile(r"^[ \t]*!((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)  # a command in a notebook cell
_PS_COMMENT = re.compile(r"<#.*?(?:#>|\Z)", re.DOTALL)
_BROKEN_JOIN = re.compile(r"([\\`^])[ \t]+\n(?=[ \t]*-)")
SUFFIXES: dict[str, Shell] = {".sh": "bash", ".bat": "cmd", ".cmd": "cmd", ".ps1": "powershell"}
_MARKS: tuple[tuple[Shell, re.Pattern[str]], ...] = (
    ("bash", re.compile(r"\\\n|\A#!|^[ \t]*(?:export|source) ", re.MULTILINE)),
    (
        "powershell",
        re.compile(r"(?<=\s)`\n|^[ \t]*\$[\w:]+[ \t]*\+?=|^[ \t]*&[ \t]*[\"'.$]|\$env:", re.MULTILINE | re.IGNORECASE),
    ),
    (
        "cmd",
        re.compile(r"\^\n|^[ \t]*@?(?:echo off|set [\"\w]|rem |::|call |setlocal)|%\w+%", re.MULTILINE | re.IGNORECASE),
    ),
    ("cmd", re.compile(r"(?<![\w'])[A-Za-z]:\\(?!\n)")),  # backslashes of paths would vanish in bash
)


@dataclass
class Script:
    """The commands of a text, each a list of words, and sentences on what was read in another way than written."""

    shell: Shell
    commands: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_script(
    text: str, suffix: str = "", variables: Mapping[str, str] | None = None, shell: Shell | None = None
) -> Script:
    """The commands of a text. shell: of the text, where the file's suffix and the text's own marks do not say it."""
    plain = text.replace("\r\n", "\n")
    text = _DASH.sub("--", plain.translate(_TYPOGRAPHY))
    notes = []
    if any(sign in plain for sign in "“”„‘’\u00a0\u202f") or _DASH.search(plain):
        notes.append("Typographic quotation marks, spaces and dashes were read as the plain ones.")
    if _BROKEN_JOIN.search(text):
        notes.append(
            "A line ends with spaces after its continuation mark, where a shell ends the command; the lines were joined."
        )
        text = _BROKEN_JOIN.sub(r"\1\n", text)
    marked = (name for name, mark in _MARKS if mark.search(text))
    dialect: Shell = shell or SUFFIXES.get(suffix) or next(marked, None) or "bash"
    cells = _CELL.findall(text) if dialect == "bash" else []
    text = "\n".join(cells) or (_PS_COMMENT.sub("", text) if dialect == "powershell" else text)
    known: dict[str, Value] = dict(variables or {})
    reader = _Cmd(text, known) if dialect == "cmd" else _Shell(text, known, dialect == "powershell", bool(cells))
    script = Script(dialect, reader.read(), notes)
    if reader.unclosed:
        script.notes.append(
            'A quotation mark is not closed, so that it holds all that follows; a path that ends with \\" does this in cmd.'
        )
    return script


def unresolved(text: str) -> list[str]:
    """What a shell would have to compute in a word: "$LR", "$(pwd)"."""
    return UNRESOLVED.findall(text)


class _Words:
    """Collects words and statements."""

    def __init__(self, text: str, variables: dict[str, Value]):
        self.text, self.at, self.variables = text, 0, variables
        self.commands: list[list[str]] = []
        self.words: list[str] = []
        self.pieces: list[str] | None = None  # of the word that is being read
        self.redirects = self.unclosed = False  # whether the next word is the target of a redirection
        self.left = MOST_EXPANDED

    @property
    def word(self) -> str:
        return "".join(self.pieces or ())

    def add(self, text: str) -> None:
        self.pieces = self.pieces or []
        self.pieces.append(text)

    def end_word(self) -> None:
        if self.pieces is not None and not self.redirects:
            self.words.append(self.word)
        self.redirects = self.redirects and self.pieces is None
        self.pieces = None

    def end_command(self) -> None:
        self.end_word()
        self.redirects = False
        if self.words:
            self.commands.append(self.words)
        self.words = []

    def redirect(self, ahead: str) -> None:
        """> file, 2>&1, < file: the number before it and the word after it are no words of the command."""
        if self.word.isdigit():
            self.pieces = None
        self.end_word()
        self.at += len(ahead)
        self.redirects = True

    def insert(self, value: Value | None, written: str, quoted: bool, splits: bool = True) -> None:
        """A variable's value: in quotes one word, without them split at spaces as bash does; several words for an array."""
        size = len(value) if isinstance(value, str) else sum(map(len, value or ()))
        self.left -= size
        if value is None or self.left < 0:
            self.add(UNSET + written + END)
            return
        parts = value if isinstance(value, list) else [value] if quoted or not splits else value.split()
        if isinstance(value, str) and not quoted and splits and value[:1].isspace():
            self.end_word()
        if not parts and self.pieces == [""]:  # "${none[@]}" is no word at all
            self.pieces = None
        for number, part in enumerate(parts):
            if number:
                self.end_word()
            self.add(part)


_ASSIGNED = re.compile(r"(\w+)(\+?)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?:\[[@*]\])?(?::?-([^{}\"'$]*))?\}|(\w+))")
_ARITHMETIC = re.compile(r"\$\(\(([^()]{1,200}|[^()]{0,90}\([^()]{0,90}\)[^()]{0,90})\)\)")
_ANSI_C = re.compile(r"\$'((?:[^'\\]++|\\.)*+)'")
_PS_VARIABLE = re.compile(
    r"\$(?:\{(?:\w+:)?([\w:]+)\}|(?:(?:script|global|local|private):)?((?:env:)?\w+))", re.IGNORECASE
)
_PS_ASSIGNED = re.compile(
    r"\$(?:(?:script|global|local|private):)?((?:env:)?\w+)[ \t]*(\+?)=(?!=)[ \t]*", re.IGNORECASE
)
_PS_PLAIN = re.compile(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?")
_REDIRECT = re.compile(r"&?[<>]{1,3}&?[ \t]*")
_IN_PYTHON = re.compile(r"\{(\w+)\}")
_PS_ESCAPES = {"n": "\n", "t": "\t", "0": "", "r": "", "a": "", "b": "", "f": "", "v": ""}


class _Shell(_Words):
    """bash and PowerShell, which differ in their escape character, quotes and assignments; notebook cells are bash with {names}."""

    def __init__(self, text: str, variables: dict[str, Value], powershell: bool, notebook: bool):
        super().__init__(text, variables)
        self.powershell, self.notebook = powershell, notebook
        self.escape = "`" if powershell else "\\"
        special = re.escape(" \t\n'\"$#;|&<>(){}" + ("`,@" if powershell else "`\\"))
        self.plain = re.compile(f"[^{special}]+")
        self.target: tuple[str, bool] | None = (
            None  # the variable that is being set, and whether something is added to it
        )
        self.outer: list[str] = []  # the words before a bash array
        self.depth, self.several, self.computed = 0, False, False  # of a PowerShell assignment
        self.acts: dict[str, Callable[[], None]] = {
            self.escape: self._escaped, "'": self._single, '"': self._double, "$": lambda: self._expand(False),
            "#": self._comment, "(": self._open, ")": self._close, "{": self._brace, "}": self._brace, "\n": self._line,
            ";": self._separator, "|": self._separator, "&": self._ampersand, "<": self._angle, ">": self._angle,
        }  # fmt: skip
        if not powershell:
            self.acts["`"] = self._backquoted

    def read(self) -> list[list[str]]:
        while self.at < len(self.text):
            if not self.words and self.pieces is None and self.target is None and self._begins():
                continue
            sign = self.text[self.at]
            run = self.plain.match(self.text, self.at)
            if run:
                self._run(run[0])
            elif sign in " \t":
                self.end_word()
                self.at += 1
            elif self.powershell and self.target and sign in ",@":
                self.several, self.at = True, self.at + 1
                self.end_word()
            else:
                self.acts.get(sign, self._literal)()
        self.end_command()
        return self.commands

    def _begins(self) -> bool:
        """At the start of a command: a PowerShell assignment."""
        if self.powershell and (found := _PS_ASSIGNED.match(self.text, self.at)):
            self.target = found[1].lower(), bool(found[2])
            self.depth, self.several, self.computed = 0, False, False
            self.at = found.end()
            return True
        return False

    def _run(self, text: str) -> None:
        self.computed = self.computed or (self.powershell and not _PS_PLAIN.fullmatch(text))
        self.add(text)
        self.at += len(text)

    def _literal(self) -> None:
        self._run(self.text[self.at])

    def _end_of_line(self) -> int:
        end = self.text.find("\n", self.at)
        return len(self.text) if end < 0 else end

    def _escaped(self) -> None:
        following = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        if following and following != "\n":
            self.add(following)

    def _single(self) -> None:
        end = self.text.find("'", self.at + 1)
        while self.powershell and end >= 0 and self.text[end + 1 : end + 2] == "'":
            end = self.text.find("'", end + 2)
        if end < 0:
            self.unclosed, end = True, len(self.text)
        text = self.text[self.at + 1 : end]
        self.add(text.replace("''", "'") if self.powershell else text)
        self.at = end + 1

    def _double(self) -> None:
        self.at += 1
        self.add("")
        plain = re.compile(r'[^"`$]+' if self.powershell else r'[^"\\`$]+')
        while self.at < len(self.text):
            sign, following = self.text[self.at], self.text[self.at + 1 : self.at + 2]
            run = plain.match(self.text, self.at)
            if run:
                self.add(run[0])
                self.at = run.end()
            elif sign == '"':
                self.at += 1
                if not (self.powershell and following == '"'):
                    return
                self.add('"')
                self.at += 1
            elif sign == "$":
                self._expand(True)
            elif sign != self.escape:
                self._backquoted()
            elif self.powershell:
                self.add("" if following == "\n" else _PS_ESCAPES.get(following, following))
                self.at += 2
            else:
                self.add(
                    "" if following == "\n" else following if following and following in '$`"\\' else sign + following
                )
                self.at += 2
        self.unclosed = True

    def _comment(self) -> None:
        if self.pieces is not None:
            self._literal()
            return
        self.at = self._end_of_line()

    def _backquoted(self) -> None:
        """`command`, which is never run."""
        end = self.text.find("`", self.at + 1)
        end = len(self.text) if end < 0 else end + 1
        self.add(UNSET + self.text[self.at : end] + END)
        self.at = end

    def _expand(self, quoted: bool) -> None:
        text, at = self.text, self.at
        if text.startswith("$(", at):
            arithmetic = None if self.powershell else _ARITHMETIC.match(text, at)
            if arithmetic:
                self.at = arithmetic.end()
                self.insert(_arithmetic(arithmetic[1], self.variables), arithmetic[0], quoted)
            else:
                self._substitution()
            return
        ansi = None if self.powershell or quoted else _ANSI_C.match(text, at)
        if ansi:
            self.at = ansi.end()
            self.add(re.sub(r"\\(.)", lambda sign: {"n": "\n", "t": "\t"}.get(sign[1], sign[1]), ansi[1]))
            return
        found = (_PS_VARIABLE if self.powershell else _VARIABLE).match(text, at)
        if not found:
            end = re.compile(r"\$(\{[^}\n]*\}?|[@*#?!$-])?").match(text, at)
            assert end is not None
            self.at = end.end()
            self.add(UNSET + end[0] + END if len(end[0]) > 1 else "$")
            return
        self.at = found.end()
        name = next(filter(None, (found[1], found[found.re.groups])), "")
        fallback = None if self.powershell else found[2]
        value = self.variables.get(name.lower() if self.powershell else name)
        self.computed = self.computed or (value is None and fallback is None)
        self.insert(fallback if value is None else value, found[0], quoted, splits=not self.powershell)
        self.several = self.several or isinstance(value, list)

    def _substitution(self) -> None:
        """$(command), which is never run."""
        depth, end = 0, self.at + 1
        for end in range(self.at + 1, min(len(self.text), self.at + 2000)):
            depth += (self.text[end] == "(") - (self.text[end] == ")")
            if depth == 0:
                break
        self.add(UNSET + self.text[self.at : end + 1] + END)
        self.computed = True
        self.at = end + 1

    def _open(self) -> None:
        self.at += 1
        array = None if self.powershell else _ASSIGNED.fullmatch(self.word)
        if array and not array[3] and self.target is None:
            self.target, self.outer = (array[1], bool(array[2])), self.words
            self.words, self.pieces = [], None
        elif self.powershell and self.target:
            self.depth, self.several = self.depth + 1, True
        else:
            self.end_command()

    def _close(self) -> None:
        self.at += 1
        if self.powershell and self.target:
            self.end_word()
            self.depth -= 1
        elif self.target:
            self.end_word()
            self._set(*self.target, self.words)
            self.target, self.words = None, self.outer
        else:
            self.end_command()

    def _brace(self) -> None:
        found = _IN_PYTHON.match(self.text, self.at) if self.notebook else None
        if found:
            self.at = found.end()
            self.insert(self.variables.get(found[1]), found[0], quoted=True)
        elif self.powershell or self.pieces is None:
            self.at += 1
            self.computed = True
            self.end_command()
        else:
            self._literal()

    def _line(self) -> None:
        self.at += 1
        if self.target and (self.depth > 0 or not self.powershell):
            self.end_word()
        else:
            self.end_command()

    def _separator(self) -> None:
        self.at += 1
        self.end_command()

    def _ampersand(self) -> None:
        found = _REDIRECT.match(self.text, self.at)
        if found:
            self.redirect(found[0])
        else:
            self._separator()

    def _angle(self) -> None:
        found = _REDIRECT.match(self.text, self.at)
        assert found is not None
        self.redirect(found[0])

    def _set(self, name: str, more: bool, value: Value | None) -> None:
        before = self.variables.get(name) if more else None
        if value is None:
            self.variables.pop(name, None)
        elif isinstance(before, list) or (before is not None and isinstance(value, list)):
            self.variables[name] = [*_listed(before), *_listed(value)]
        else:
            self.variables[name] = value if before is None else f"{before}{value}"

    def end_command(self) -> None:
        self.end_word()
        if self.powershell and self.target:
            value = None if self.computed or (not self.words and not self.several) else self.words
            self._set(*self.target, value[0] if value and len(value) == 1 and not self.several else value)
            self.target, self.words = None, []
        elif self.target:  # an array that is not closed
            self.target, self.words = None, self.outer
        if not self.powershell:
            self._assign()
        super().end_command()

    def _assign(self) -> None:
        """NAME=value at the start of a command."""
        if self.words and self.words[0] in ("export", "declare", "local", "readonly"):
            self.words = self.words[1:]
        while self.words and (found := _ASSIGNED.fullmatch(self.words[0])):
            self._set(found[1], bool(found[2]), None if UNSET in found[3] else found[3])
            self.words = self.words[1:]


def _listed(value: Value | None) -> list[str]:
    return value if isinstance(value, list) else [] if value is None else [value]


_OPERATORS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: int(left / right),  # bash divides whole numbers
    ast.Mod: lambda left, right: left - right * int(left / right),
}
_LARGEST = 10**15


def _arithmetic(text: str, variables: Mapping[str, Value]) -> str | None:
    """$((...)) of whole numbers; None for anything else."""
    filled = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda name: str(variables.get(name[1], "?"))[:20], text)
    try:
        return str(_computed(ast.parse(filled.strip(), mode="eval").body))
    except (ValueError, SyntaxError, ZeroDivisionError, KeyError, RecursionError, MemoryError):
        return None


def _computed(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_computed(node.operand)
    elif isinstance(node, ast.BinOp):
        value = _OPERATORS[type(node.op)](_computed(node.left), _computed(node.right))
    else:
        raise ValueError("not whole numbers")
    if abs(value) > _LARGEST:
        raise ValueError("too large")
    return value


_CMD_SET = re.compile(r'set\s+(?:"(\w+)=(.*)"|(\w+)=(.*))\s*', re.IGNORECASE)
_CMD_VARIABLE = re.compile(r"%(?:(%)|(\w+)%|~?[\w~]*)")
_CMD_PLAIN = re.compile(r'[^\\"^&|<> \t]+')


class _Cmd(_Words):
    """cmd.exe, whose operators obey its own quotes, and the C runtime, which splits the rest into words by other rules."""

    def read(self) -> list[list[str]]:
        self.variables = {name.lower(): value for name, value in self.variables.items()}
        for line in self.text.replace("^\n", "").split("\n"):
            line = line.strip().lstrip("@").lstrip()
            if re.match(r"(rem\b|::|echo\b)", line, re.IGNORECASE):
                continue
            line = _CMD_VARIABLE.sub(self._value, line)
            found = _CMD_SET.fullmatch(line)
            if found:
                value = found[2] if found[1] else found[4]
                name = (found[1] or found[3]).lower()
                self.variables.pop(name, None)
                if UNSET not in value:
                    self.variables[name] = value
            else:
                self._split(line)
        return self.commands

    def _value(self, found: re.Match[str]) -> str:
        value = "%" if found[1] else self.variables.get((found[2] or "").lower())
        self.left -= len(value or "")
        return (
            value if isinstance(value, str) and self.left >= 0 else UNSET + found[0] + END if len(found[0]) > 1 else "%"
        )

    def _split(self, line: str) -> None:
        self.text, self.at = line, 0
        quoted, literal = False, False  # in the C runtime's quotes, in cmd's
        while self.at < len(line):
            sign = line[self.at]
            run, slashes = _CMD_PLAIN.match(line, self.at), re.compile(r"\\*").match(line, self.at)
            if run:
                self.add(run[0])
                self.at = run.end()
            elif slashes and slashes[0]:
                self.at = slashes.end()
                before_quote = line[self.at : self.at + 1] == '"'
                self.add(slashes[0][: len(slashes[0]) // 2] if before_quote else slashes[0])
                if before_quote and len(slashes[0]) % 2:
                    self.add('"')
                    literal, self.at = not literal, self.at + 1
            elif sign == '"':
                if quoted and line[self.at + 1 : self.at + 2] == '"':
                    self.add('"')
                    self.at += 2
                else:
                    self.add("")
                    quoted, literal, self.at = not quoted, not literal, self.at + 1
            elif sign == "^" and not literal:
                self.add(line[self.at + 1 : self.at + 2])
                self.at += 2
            elif sign in "&|" and not literal:
                self.at += 1
                self.end_command()
            elif sign in "<>" and not literal and (ahead := _REDIRECT.match(line, self.at)):
                self.redirect(ahead[0])
            elif sign in " \t" and not quoted:
                self.end_word()
                self.at += 1
            else:
                self.add(sign)
                self.at += 1
        self.unclosed = self.unclosed or quoted
        self.end_command()
