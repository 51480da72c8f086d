"""Split scripts of bash, cmd, PowerShell and notebook cells into the words of their commands, without running anything.

Variables that the text sets are filled in. Everything else that a shell would compute stays as written, between the marks UNSET and END.
"""

import ast
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

Shell = Literal["bash", "cmd", "powershell"]
Value = str | list[str]
Token = re.Match[str]

UNSET, END = "\ue000", "\ue001"
UNRESOLVED = re.compile(f"{UNSET}([^{UNSET}{END}]*){END}")
MOST_EXPANDED = 1_000_000  # characters that variables add: A=$A$A doubles with each line
_TYPOGRAPHY = str.maketrans({
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "\u00a0": " ", "\u202f": " ", "\u200b": None, "\ufeff": None,
    UNSET: None, END: None, "\0": None, "\r": None,
})  # fmt: skip
_DASH = re.compile(r"(?<!\S)[–—−](?:[–—−-])?(?=[A-Za-z])")
# A command in a notebook cell, with lines of options after it
_CELL = re.compile(r"^[ \t]*!((?:[^\n]*\\\n)*[^\n]*(?:\n[ \t]*--(?:[^\n]*\\\n)*[^\n]*)*)", re.MULTILINE)
_PS_COMMENT = re.compile(r"<#.*?(?:#>|\Z)", re.DOTALL)
_BROKEN_JOIN = re.compile(r"([\\`^])[ \t]+\n(?=[ \t]*-)")
SUFFIXES: dict[str, Shell] = {".sh": "bash", ".bat": "cmd", ".cmd": "cmd", ".ps1": "powershell"}
_MARKS: tuple[tuple[Shell, str], ...] = (
    ("bash", r"(?m)\\\n|\A#!|^[ \t]*(?:export|source) "),
    ("powershell", r"(?mi)(?<=\s)`\n|^[ \t]*\$[\w:]+[ \t]*\+?=|^[ \t]*&[ \t]*[\"'.$]|\$env:"),
    ("cmd", r"(?mi)\^\n|^[ \t]*@?(?:echo off|set [\"\w]|rem |::|call |setlocal)|%\w+%"),
    ("cmd", r"(?<![\w'])[A-Za-z]:\\(?!\n)"),  # backslashes of paths would vanish in bash
)
# Single quotes begin after a space, = or a quotation mark: elsewhere they are apostrophes
_QUOTED = re.compile(r"""(?P<double>"[^"\n]*+")|(?<![^\s"'=])'[^'\n]*+'""")


@dataclass
class Script:
    """The commands of a text, each a list of words, and sentences on text that was corrected before it was read."""

    commands: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_script(text: str, suffix: str = "") -> Script:
    """Return the commands of a script, with the variables that it sets filled in. Nothing is run.
    suffix: extension of the file (".ps1"), which determines the shell; "" or another detects it from the text"""
    plain = text.replace("\r\n", "\n")
    text = _DASH.sub("--", plain.translate(_TYPOGRAPHY))
    notes = []
    if any(sign in plain for sign in "“”„‘’\u00a0\u202f") or _DASH.search(plain):
        notes.append("Typographic quotation marks, spaces and dashes were read as the plain ones.")
    text, joined = _BROKEN_JOIN.subn(r"\1\n", text)
    if joined:
        what = "A line ends with spaces after its continuation mark, where a shell ends the command; the lines were joined."
        notes.append(what)
    unquoted = _QUOTED.sub(lambda quote: quote[0] if quote["double"] else "", text)
    marked = (name for name, mark in _MARKS if re.search(mark, unquoted))
    dialect: Shell = SUFFIXES.get(suffix) or next(marked, None) or "bash"
    known: dict[str, Value] = {}
    if dialect == "bash" and (cells := _CELL.findall(text)):
        known = _python_values(text)
        text = _with_python("\n".join(cells), known)
    elif dialect == "powershell":
        text = _PS_COMMENT.sub("", text)
    reader = _Cmd(known) if dialect == "cmd" else _Shell(known, dialect == "powershell")
    reader.read(text)
    if reader.unclosed:
        what = 'A quotation mark is not closed, so that it holds all that follows; a path that ends with \\" does this in cmd.'
        notes.append(what)
    return Script(reader.commands, notes)


def unresolved(text: str) -> list[str]:
    """Return the parts of a word that a shell would have to compute: ["$LR", "$(pwd)"]."""
    return UNRESOLVED.findall(text)


def _python_values(text: str) -> dict[str, Value]:
    """Return {name: value as text} of the variables that a notebook's lines set to texts and numbers, where no condition decides."""
    values: dict[str, Value] = {}
    condition = MOST_EXPANDED  # indentation of the line that begins an open block of if, for ...
    for line in text.split("\n"):
        depth = len(line) - len(line.lstrip())
        condition = condition if depth > condition or not line.strip() else MOST_EXPANDED
        if condition == MOST_EXPANDED and _PYTHON_CONDITION.match(line):
            condition = depth
        for name, changes, written in _PYTHON_SET.findall(line):
            values.pop(name, None)
            if not changes and condition == MOST_EXPANDED:
                with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                    value = ast.literal_eval(written.strip())
                    values |= {name: str(value)} if isinstance(value, (str, int, float)) else {}
    return values


def _with_python(text: str, values: Mapping[str, Value]) -> str:
    """Return the text of notebook cells with {name} replaced by its value; unknown names are marked with UNSET and END."""
    characters_left = MOST_EXPANDED

    def value(match: Token) -> str:
        """Return the value of the matched variable, marked if it is unknown or too much text was added."""
        nonlocal characters_left
        known = values.get(match[1]) if not match[2].strip() else None
        characters_left -= len(known or "")
        return known if isinstance(known, str) and characters_left >= 0 else f"{UNSET}{match[0]}{END}"

    return _IN_PYTHON.sub(value, text)


class _Reader(ABC):
    """Base of the readers, which split a text token by token into words and commands."""

    def __init__(self, variables: dict[str, Value]):
        self.text, self.position, self.variables = "", 0, variables
        self.commands: list[list[str]] = []
        self.words: list[str] = []
        self.word_parts: list[str] | None = None  # of the current word; None between words
        self.quoted = self.unclosed = False
        self.skips_word = False  # whether the next word is the target of a redirection, which is no argument
        self.characters_left = MOST_EXPANDED  # that variables may still add

    @abstractmethod
    def tokens(self) -> re.Pattern[str]:
        """Return the pattern of the next token, with a named group for each kind of token."""

    def read(self, text: str) -> None:
        """Append the commands in `text` to `commands`."""
        self.text, self.position = text, 0
        while self.position < len(text):
            token = self.tokens().match(text, self.position)
            assert token is not None and token.lastgroup is not None
            self.position = token.end()
            self.process(token.lastgroup, token)
        self.unclosed = self.unclosed or self.quoted
        self.end_command()

    def process(self, kind: str, token: Token) -> None:
        """Process a token; `kind` is the name of the group that matched."""
        match kind:
            case "blank":
                self.end_word()
            case "separator":
                self.end_command()
            case "doubled":
                self.add('"')
            case "unset" | "placeholder":
                self.add(UNSET + token[0] + END)
            case "redirect":  # 2>&1, > file: the number before and the word after are no words of the command
                self.word_parts = None if self.word.isdigit() else self.word_parts
                self.end_word()
                self.skips_word = True
            case _:
                self.add(token[0])

    @property
    def word(self) -> str:
        """The current word, as far as it is read; "" between words."""
        return "".join(self.word_parts or ())

    def add(self, text: str) -> None:
        """Append text to the current word, or begin a word with it."""
        self.word_parts = self.word_parts or []
        self.word_parts.append(text)

    def end_word(self) -> None:
        """End the current word and append it to `words`, unless it is the target of a redirection."""
        if self.word_parts is not None and not self.skips_word:
            self.words.append(self.word)
        self.skips_word = self.skips_word and self.word_parts is None
        self.word_parts = None

    def end_command(self) -> None:
        """End the current command and append its words to `commands`."""
        self.end_word()
        self.skips_word = False
        if self.words:
            self.commands.append(self.words)
        self.words = []


_PLACEHOLDER = r"(?P<placeholder><(?=[^\s#])[^<>\n]{0,80}(?<=[^\s#])>(?![^\s\"']))"  # of a guide: <path of the model>
_REDIRECT = _PLACEHOLDER + r"|(?P<redirect>&?[<>]{1,3}&?[ \t]*)"
_SCOPE = r"(?:(?:script|global|local|private):)?"
_OR = r"(?:\[[@*]\])?(?::?-(?P<fallback>[^{}\"'$]*))?"
BASH, PS, BOTH = "b", "p", "bp"
START, INSIDE, OUTSIDE, ANYWHERE = "s", "i", "so", "sio"
# (the shells that have a token, where in double quotes it can be, its pattern), tried in this order. START: of a command
_TOKENS = (
    (PS, START, rf"(?P<assigned>\${_SCOPE}(?P<target>(?:env:)?\w+)[ \t]*(?P<more>\+?)=(?!=)[ \t]*)"),
    (BASH, OUTSIDE, r"(?P<plain>[^ \t\n'\"$#;|&<>(){}`\\]+)"),
    (PS, OUTSIDE, r"(?P<plain>[^ \t\n'\"$#;|&<>(){}`,@]+)"),
    (PS, INSIDE, r'(?P<doubled>"")'),
    (BOTH, ANYWHERE, r'(?P<quote>")'),
    (BASH, ANYWHERE, r"(?P<escaped>\\(?P<sign>.?))"),
    (PS, ANYWHERE, r"(?P<escaped>`(?P<sign>.?))"),
    (BASH, OUTSIDE, r"(?P<single>'(?P<inner>[^']*+)(?P<closed>'?))"),
    (PS, OUTSIDE, r"(?P<single>'(?P<inner>(?:[^']|'')*+)(?P<closed>'?))"),
    (BASH, OUTSIDE, r"(?P<ansi>\$'(?P<coded>(?:[^'\\]++|\\.)*+)')"),
    (PS, OUTSIDE, r"(?P<splat>@(?P<listed>\w+))"),
    (PS, OUTSIDE, r"(?P<list>[,@])"),
    (BOTH, OUTSIDE, r"(?P<blank>[ \t]+)"),
    (BOTH, OUTSIDE, r"(?P<comment>\#)"),
    (BOTH, OUTSIDE, r"(?P<open>\()"),
    (BOTH, OUTSIDE, r"(?P<close>\))"),
    (BOTH, OUTSIDE, r"(?P<brace>[{}])"),
    (BOTH, OUTSIDE, r"(?P<line>\n)"),
    (BOTH, OUTSIDE, _REDIRECT),
    (BOTH, OUTSIDE, r"(?P<separator>[;|&])"),
    (BASH, ANYWHERE, r"(?P<arithmetic>\$\(\((?P<sum>[^()]{1,200}|[^()]{0,90}\([^()]{0,90}\)[^()]{0,90})\)\))"),
    (BOTH, ANYWHERE, r"(?P<substitution>\$\()"),
    (BASH, ANYWHERE, rf"(?P<variable>\$(?:\{{(?P<braced>\w+){_OR}\}}|(?P<name>\w+)))"),
    (PS, ANYWHERE, rf"(?P<variable>\$(?:\{{(?:\w+:)?(?P<braced>[\w:]+)\}}|{_SCOPE}(?P<name>(?:env:)?\w+)))"),
    (BASH, ANYWHERE, r"(?P<unset>`[^`]*`?|\$(?:\{[^}\n]*\}?|[@*#?!$-]))"),
    (PS, ANYWHERE, r"(?P<unset>\$(?:\{[^}\n]*\}?|[@*#?!$-]))"),
    (BOTH, ANYWHERE, r'(?P<text>[^"\\`$]+|.)'),
)
_PS_NUMBER = re.compile(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?")
_ASSIGNED = re.compile(r"(\w+)(\+?)=(.*)", re.DOTALL)
_IN_PYTHON = re.compile(r"(?<!\$)\{[ ]*([A-Za-z_]\w*)([^{}\n]{0,100})\}")
_PYTHON_SET = re.compile(r"(?:^|:)[ \t]*([A-Za-z_]\w*)[ \t]*([-+*/]{0,2})=(?!=)([^\n]{1,500})")
_PYTHON_CONDITION = re.compile(r"[ \t]*(?:if|elif|else|for|while|try|except)\b")
# Words before a command -> the branches that they open or close
_BRANCHES = {"if": 1, "case": 1, "fi": -1, "esac": -1} | dict.fromkeys(("then", "elif", "else", "do"), 0)
_PS_BRANCHES = ("if", "elseif", "else", "switch", "catch")
_ESCAPES = {  # in double quotes of PowerShell, and of bash
    True: {"\n": "", "n": "\n", "t": "\t"} | dict.fromkeys("0rabfv", ""),
    False: {"\n": ""} | {sign: sign for sign in '$`"\\'},
}


@cache
def _shell_tokens(shell: str, position: str) -> re.Pattern[str]:
    """Return the pattern of the tokens that a shell (BASH or PS) has in a position (START, INSIDE quotes or OUTSIDE)."""
    rows = [pattern for shells, positions, pattern in _TOKENS if shell in shells and position in positions]
    return re.compile("|".join(rows), re.DOTALL | re.IGNORECASE)


class _Shell(_Reader):
    """Reader of bash and PowerShell, which differ in their escape character, quotes and assignments."""

    def __init__(self, variables: dict[str, Value], powershell: bool):
        super().__init__(variables)
        self.powershell = powershell
        self.assigned: tuple[str, bool] | None = None  # the variable that is being set, and whether it is added to
        self.words_before: list[str] = []  # the words before a bash array
        self.depth, self.is_array, self.is_computed = 0, False, False  # of a PowerShell assignment
        self.open_branches = 0  # bash: if and case that are not closed yet
        self.tested = False  # bash: whether the command follows a test and && or ||
        # Whether PowerShell's open blocks depend on a condition, and the next one does
        self.blocks, self.condition = list[bool](), False
        self.notebook_values = dict(variables)  # what the Python of a notebook set

    def tokens(self) -> re.Pattern[str]:
        """Return the pattern of the next token, which depends on quotes and the start of a command."""
        begins = not self.words and self.word_parts is None and self.assigned is None
        return _shell_tokens(
            PS if self.powershell else BASH, INSIDE if self.quoted else START if begins else OUTSIDE[1]
        )

    def process(self, kind: str, token: Token) -> None:
        """Process a token of bash or PowerShell; `kind` is the name of the group that matched."""
        match kind:
            case "assigned":
                self.assigned = token["target"].lower(), bool(token["more"])
                self.depth, self.is_array, self.is_computed = 0, False, False
            case "escaped" if self.quoted:
                sign = token["sign"]
                self.add(_ESCAPES[self.powershell].get(sign, sign if self.powershell else token[0]))
            case "escaped":
                if token["sign"] not in ("", "\n"):
                    self.add(token["sign"])
            case "quote":
                self.quoted = not self.quoted
                self.add("")
            case "single":
                self.unclosed = self.unclosed or not token["closed"]
                self.add(token["inner"].replace("''", "'"))
            case "ansi":
                self.add(re.sub(r"\\(.)", lambda sign: {"n": "\n", "t": "\t"}.get(sign[1], sign[1]), token["coded"]))
            case "arithmetic":
                self._insert(_arithmetic(token["sum"], self.variables), token[0], self.quoted)
            case "substitution":
                self._substitution(token.start())
            case "variable":
                self._variable(token)
            case "splat" if self.word_parts is None:
                self._insert(self.variables.get(token["listed"].lower()), token[0], whole=True)
            case "open":
                self._open()
            case "close":
                self._close()
            case "brace":
                self._brace(token)
            case "list" if self.assigned:
                self.is_array = True
                self.end_word()
            case "line" if self.assigned and (
                self.depth > 0 or not self.powershell or self._after_comma(token.start())
            ):
                self.end_word()
            case "separator" if not self.powershell:
                tested = self.tested or self.words[:1] in (["["], ["[["], ["test"])
                self.end_command()
                self.tested = tested and token[0] != ";"
            case "line":
                self.end_command()
                self.tested = False
            case "comment" if self.word_parts is None:
                end = self.text.find("\n", self.position)
                self.position = len(self.text) if end < 0 else end
            case "plain" | "list" | "comment":
                self._plain(token[0])
            case _:
                super().process(kind, token)

    def _after_comma(self, position: int) -> bool:
        """Return whether the text before a position ends with a comma, after which PowerShell continues a list on the next line."""
        return self.text[max(0, position - 100) : position].rstrip(" \t").endswith(",")

    def _plain(self, text: str) -> None:
        """Add plain text. In PowerShell, text other than a number makes an assignment's value unknown."""
        self.is_computed = self.is_computed or (self.powershell and not _PS_NUMBER.fullmatch(text))
        self.add(text)

    def _substitution(self, start: int) -> None:
        """Add $(command), which starts at `start`, as an unknown value; it is never run."""
        depth, self.position = 0, min(len(self.text), start + 2000)
        for sign in re.finditer(r"[()]", self.text[start : self.position]):
            depth += 1 if sign[0] == "(" else -1
            if depth == 0:
                self.position = start + sign.end()
                break
        self.add(UNSET + self.text[start : self.position] + END)
        self.is_computed = True

    def _variable(self, token: Token) -> None:
        """Add the value of a variable, its fallback as in ${NAME:-fallback}, or mark it as unknown."""
        name = token["braced"] or token["name"] or ""
        value = self.variables.get(name.lower() if self.powershell else name, token.groupdict().get("fallback"))
        self.is_computed = self.is_computed or value is None
        self._insert(value, token[0], self.quoted or self.powershell)
        self.is_array = self.is_array or isinstance(value, list)

    def _insert(self, value: Value | None, written: str, whole: bool) -> None:
        """Add a variable's value to the words; None marks `written` as unknown.
        whole: whether a text stays one word and an array's items are the words; else both are split at spaces, as bash does without
        quotes"""
        self.characters_left -= sum(map(len, value or ()))
        if value is None or self.characters_left < 0:
            self.add(UNSET + written + END)
            return
        parts = [value] if isinstance(value, str) else value
        if not whole:
            if isinstance(value, str) and value[:1].isspace():
                self.end_word()
            parts = [word for part in parts for word in part.split()]
        if not parts and self.word_parts == [""]:  # an empty "${none[@]}" does not give a word
            self.word_parts = None
        for number, part in enumerate(parts):
            if number:
                self.end_word()
            self.add(part)

    def _open(self) -> None:
        """Process an opening parenthesis: begin an array, or end the command at a subshell."""
        array = None if self.powershell else _ASSIGNED.fullmatch(self.word)
        if array and not array[3] and self.assigned is None:
            self.assigned, self.words_before = (array[1], bool(array[2])), self.words
            self.words, self.word_parts = [], None
        elif self.powershell and self.assigned:
            self.depth, self.is_array = self.depth + 1, True
        else:
            self.end_command()

    def _close(self) -> None:
        """Process a closing parenthesis: end an array, or the command in a subshell."""
        if self.assigned is None:
            self.end_command()
            return
        self.end_word()
        if self.powershell:
            self.depth -= 1
        else:
            self._set(*self.assigned, self.words)
            self.assigned, self.words = None, self.words_before

    def _brace(self, token: Token) -> None:
        """Process { or }: begin or end a block, or add it to a bash word."""
        if self.powershell or self.word_parts is None:
            self.is_computed = True
            self.end_command()
            if token[0] == "{":
                self.blocks.append(self.condition)
                self.condition = False
            elif self.blocks:
                self.blocks.pop()
        else:
            self.add(token[0])

    def _set(self, name: str, append: bool, value: Value | None) -> None:
        """Set a variable, or append to it. It becomes unknown if `value` is None, and where a condition decides."""
        value = None if self.open_branches or self.tested or any(self.blocks) else value
        before = self.variables.get(name) if append else None
        if value is None and name in self.notebook_values:
            self.variables[name] = self.notebook_values[name]
        elif value is None:
            self.variables.pop(name, None)
        elif before is None:
            self.variables[name] = value
        elif isinstance(before, str) and isinstance(value, str):
            self.variables[name] = before + value
        else:
            self.variables[name] = [
                word for each in (before, value) for word in ([each] if isinstance(each, str) else each)
            ]

    def end_command(self) -> None:
        """End the current command or assignment."""
        self.end_word()
        if self.powershell and self.assigned:
            value = None if self.is_computed or not (self.words or self.is_array) else self.words
            self._set(*self.assigned, value[0] if value and len(value) == 1 and not self.is_array else value)
            self.words = []
        elif self.assigned:  # an array that is not closed
            self.words = self.words_before
        self.assigned = None
        if not self.powershell:
            self._assign()
        elif self.words:
            self.condition = self.condition or self.words[0].lower() in _PS_BRANCHES
        super().end_command()

    def _assign(self) -> None:
        """Set the variables of NAME=value at the start of a bash command, after keywords such as if or export, and remove these words."""
        while self.words and self.words[0] in _BRANCHES:
            self.open_branches = max(0, self.open_branches + _BRANCHES[self.words[0]])
            self.words = self.words[1:]
        if self.words and self.words[0] in ("export", "declare", "local", "readonly"):
            self.words = self.words[1:]
        while self.words and (match := _ASSIGNED.fullmatch(self.words[0])):
            self._set(match[1], bool(match[2]), None if UNSET in match[3] else match[3])
            self.words = self.words[1:]


_OPERATORS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: int(left / right),  # bash divides whole numbers
    ast.Mod: lambda left, right: left - right * int(left / right),
}
_LARGEST = 10**15


def _arithmetic(text: str, variables: Mapping[str, Value]) -> str | None:
    """Return the result of $((...)) with whole numbers, as text; None for other expressions."""
    filled = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda name: str(variables.get(name[1], "?"))[:20], text)
    try:
        return str(_evaluated(ast.parse(filled.strip(), mode="eval").body))
    except (ValueError, SyntaxError, ZeroDivisionError, KeyError, RecursionError, MemoryError):
        return None


def _evaluated(node: ast.AST) -> int:
    """Evaluate a parsed expression of whole numbers. Raises ValueError, KeyError or ZeroDivisionError."""
    match node:
        case ast.Constant(value=int() as value) if value is not True and value is not False:
            pass
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_evaluated(operand)
        case ast.BinOp(left=left, op=sign, right=right):
            value = _OPERATORS[type(sign)](_evaluated(left), _evaluated(right))
        case _:
            raise ValueError("not whole numbers")
    if abs(value) > _LARGEST:
        raise ValueError("too large")
    return value


_CMD_SET = re.compile(r'set\s+(/[ap]\s+)?(?:"(\w+)=(.*)"|(\w+)=([^&|]*))\s*', re.IGNORECASE)
_CMD_VARIABLE = re.compile(r"%(?:(%)|(\w+)%|~?[\w~]*)|!(\w+)!")
_CMD_CONDITION = re.compile(r"(?:if|for)\b", re.IGNORECASE)
_CMD_BRANCH = re.compile(r"(?:if|for)\b.*\($", re.IGNORECASE)


@cache
def _cmd_tokens(quoted: bool, literal: bool) -> re.Pattern[str]:
    """Return the pattern of cmd's tokens. quoted, literal: whether in quotes for the C runtime, and for cmd"""
    # bash's quotes around a word that needs them, as shlex.quote writes them; cmd has none
    whole = r"""(?<!\S)(?P<single>'(?=[^'\n]*(?:[ \t\\"]|'"))[^'\n]*+'(?:"'"'[^'\n]*+')*+(?!\S))"""
    rows = [] if quoted or literal else [whole]
    rows += [r'(?P<text>[^\\"^&|<> \t]+|\\++(?!"))', r'(?P<slashes>(?:\\\\)++(?="))', r'(?P<escaped>(?:\\\\)*+\\")']
    rows += [r'(?P<doubled>"")'] if quoted else [r"(?P<blank>[ \t]+)"]
    rows += [] if literal else [r"(?P<caret>\^(?P<sign>.?))", r"(?P<separator>[&|])", _REDIRECT]
    return re.compile("|".join([*rows, r'(?P<quote>")', r"(?P<plain>.)"]))


class _Cmd(_Reader):
    """Reader of cmd.exe, whose operators follow its own quoting, and of the C runtime, which splits words by other rules."""

    literal = False  # whether the reader is in cmd's quotes; `quoted`: in those of the C runtime
    delayed = False  # whether !name! is a variable

    def tokens(self) -> re.Pattern[str]:
        return _cmd_tokens(self.quoted, self.literal)

    def read(self, text: str) -> None:
        """Append the commands in `text` to `commands`, line by line; lines with `set` set variables."""
        self.delayed = "enabledelayedexpansion" in text.lower()
        branches = 0
        for line in text.replace("^\n", "").split("\n"):
            line = line.strip().lstrip("@").lstrip()
            if re.match(r"(rem\b|::|echo\b)", line, re.IGNORECASE):
                continue
            branches += 1 if _CMD_BRANCH.match(line) else -1 if line.startswith(")") and not line.endswith("(") else 0
            if _CMD_CONDITION.match(line):  # whose variables depend on it, also in one line: if ... set NAME=value
                for each in _CMD_SET.finditer(line):
                    self.variables.pop((each[2] or each[4]).lower(), None)
            line = _CMD_VARIABLE.sub(self._value, line)
            match = _CMD_SET.fullmatch(line)
            if match is None:
                self.quoted = self.literal = False
                super().read(line)
                continue
            computed, name, value = match[1], (match[2] or match[4]).lower(), match[3] if match[2] else match[5]
            self.variables.pop(name, None)
            if computed:
                value = _arithmetic(value.lower(), self.variables) if computed[1] in "aA" else None
            if value is not None and UNSET not in value and branches <= 0:
                self.variables[name] = value

    def _value(self, match: Token) -> str:
        """Return the value of a matched variable; marked with UNSET and END if unknown."""
        if match[3] and not self.delayed:
            return match[0]
        value = "%" if match[1] else self.variables.get((match[2] or match[3] or "").lower())
        self.characters_left -= len(value or "")
        if isinstance(value, str) and self.characters_left >= 0:
            return value
        return UNSET + match[0] + END if len(match[0]) > 1 else "%"

    def process(self, kind: str, token: Token) -> None:
        """Process a token of cmd or the C runtime; `kind` is the name of the group that matched."""
        match kind:
            case "slashes":  # each two before a quotation mark are one
                self.add(token[0][::2])
            case "escaped":
                self.add(token[0][2::2] + '"')
                self.literal = not self.literal
            case "quote":
                self.add("")
                self.quoted, self.literal = not self.quoted, not self.literal
            case "caret":
                self.add(token["sign"])
            case "single":
                self.add(token[0][1:-1].replace("'\"'\"'", "'"))
            case _:
                super().process(kind, token)
