"""Mutants of the hardware description: small changes of its source, each meant to break it.

A mutant replaces one piece of text in one file of ``hw/``. Only code that makes hardware is
changed: functions, signatures and constants of the modules that use Amaranth, and their tables.
Docstrings, names, annotations, default arguments, argument checks with their messages, and
contracts for proofs stay.
"""

import ast
import bisect
import dataclasses
import functools
import random
import re
from collections.abc import Callable, Iterator

from hw.records import ROOT

__all__ = ["OPERATORS", "Mutant", "draw", "mutants", "unit_path", "units"]

# Tables are NumPy. What synthesizes, writes Verilog or surrounds it, and the top of a board around
# its pins, which no bench elaborates without a platform, are no units.
_TABLES = "tables.py"
_NO_UNITS = re.compile(r"hw/(build|export|packaging|synth/.*|boards/(top|\w+_platform))\.py")
_COMPARISONS = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="),
                ast.GtE: (">=", ">"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "==")}
_BINARY = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.BitAnd: ("&", "|"),
           ast.BitOr: ("|", "&"), ast.BitXor: ("^", "|"), ast.LShift: ("<<", ">>"),
           ast.RShift: (">>", "<<")}
_SELECTIONS = ("bit_select", "word_select")
_CONTRACTS = ("Assert", "Assume", "Cover", "Print", "Format")

#: Kinds of change by name, and what each does.
OPERATORS = {
    "comparison": "< for <=, == for !=, and the like",
    "operation": "+ for -, & for |, << for >>, and the like",
    "operand": "a & b or a | b without one of the two",
    "negation": "~a without its ~, any() for all()",
    "condition": "a condition inverted, always true, or never true",
    "branch": "If for Elif, the arms of a Mux swapped",
    "constant": "an integer one more or one less, another truth value",
    "bound": "a bound of a slice, a range or a width, or an index, one more or one less",
    "assignment": "an assignment or a step of a state machine left out",
    "state": "another next state",
    "reset": "a register without reset, or with another initial value",
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes
    ----------
    path : str
        File, from the root of the project.
    operator : str
        One of :data:`OPERATORS`.
    start, end : int
        Bytes of the file that are replaced.
    new : str
        Text in their place.
    line : int
        First line that changes, from 1.
    lines : tuple of int
        First and last line of the statement that changes; of a compound one, of its head.
    function : str
        Qualified name of the function or class; empty in the module itself.
    before, after : str
        The lines that change, stripped.
    """

    path: str
    operator: str
    start: int
    end: int
    new: str
    line: int
    lines: tuple[int, int]
    function: str
    before: str
    after: str

    def plant(self, text: str) -> str:
        """Return ``text``, that of the file, with the change."""
        raw = text.encode()
        return (raw[:self.start] + self.new.encode() + raw[self.end:]).decode()

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before}  ->  {self.after}"


def units() -> list[str]:
    """Return the units that can be mutated, as paths without ``hw/`` and ``.py``."""
    found = []
    for path in sorted((ROOT / "hw").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not _NO_UNITS.fullmatch(name) and (path.name == _TABLES or re.search(
                r"^from amaranth\b", path.read_text(), re.MULTILINE)):
            found.append(name.removeprefix("hw/").removesuffix(".py"))
    return found


def unit_path(unit: str) -> str:
    """Return the file of ``unit``, from the root of the project."""
    return f"hw/{unit}.py"


def mutants(path: str, text: str) -> list[Mutant]:
    """Return every mutant of the file ``path`` with content ``text``, in the order of the text."""
    return _Finder(path, text).find()


def draw(found: list[Mutant], seed: str) -> Iterator[Mutant]:
    """Yield all of ``found`` in random order, each kind of change as often as the others."""
    rng = random.Random(seed)
    kinds: dict[str, list[Mutant]] = {name: [] for name in OPERATORS}
    for mutant in found:
        kinds[mutant.operator].append(mutant)
    for kind in kinds.values():
        rng.shuffle(kind)
    while left := [kind for kind in kinds.values() if kind]:
        yield rng.choice(left).pop()


class _Finder:
    """Finds the mutants of one file."""

    def __init__(self, path: str, text: str):
        self._path, self._text, self._raw = path, text, text.encode()
        self._starts = [0]
        for line in self._raw.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._checks = {"check", "one_of", "positive_int"}
        self._registers: set[str] = set()
        self._wires: set[int] = set()
        self._states: list[str] = []
        self._scope: list[str] = []
        self._statement = (1, 1)
        self._found: dict[tuple[int, int, str], Mutant] = {}

    def find(self) -> list[Mutant]:
        """Return the mutants in the order of the text."""
        tree = ast.parse(self._text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "hw.check":
                self._checks |= {name.asname or name.name for name in node.names}
            if isinstance(node, ast.AugAssign) and _is_domain(node.target):
                if not (isinstance(node.target, ast.Attribute) and node.target.attr == "comb"):
                    self._registers |= _assigned(node.value)
        self._block(tree.body)
        return sorted(self._found.values(), key=lambda mutant: (mutant.start, mutant.end,
                                                                mutant.new))

    # Positions and text.

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (self._starts[node.lineno - 1] + node.col_offset,
                self._starts[node.end_lineno - 1] + node.end_col_offset)

    def _source(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self._raw[start:end].decode()

    def _line(self, offset: int) -> int:
        return bisect.bisect_right(self._starts, offset)

    def _add(self, operator: str, start: int, end: int, new: str) -> None:
        first, last = self._line(start), self._line(max(start, end - 1))
        begin, stop = self._starts[first - 1], self._starts[last]
        before = self._raw[begin:stop].decode()
        after = (self._raw[begin:start] + new.encode() + self._raw[end:stop]).decode()
        if self._raw[start:end].decode() == new:
            return
        mutant = Mutant(self._path, operator, start, end, new, first, self._statement,
                        ".".join(self._scope), _stripped(before), _stripped(after))
        self._found.setdefault((start, end, new), mutant)

    def _replace(self, operator: str, node: ast.expr | ast.stmt, new: str) -> None:
        self._add(operator, *self._span(node), new)

    def _between(self, operator: str, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replace the token ``old`` between two expressions; comments hold none."""
        start, end = self._span(left)[1], self._span(right)[0]
        at = re.sub(r"#.*", lambda comment: " " * len(comment[0].encode()),
                    self._raw[start:end].decode()).find(old)
        self._add(operator, start + at, start + at + len(old), new)

    # Statements.

    def _block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self._visit(statement)

    def _visit(self, node: ast.stmt) -> None:
        head_end = node.end_lineno or node.lineno
        if isinstance(node, ast.With | ast.If | ast.For | ast.While):
            head_end = max(node.lineno, node.body[0].lineno - 1)
        self._statement = (node.lineno, head_end)
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                if not re.match(r"_?check|__(post_init|repr|str|eq|hash)__", node.name):
                    states, self._states = self._states, [
                        str(item.args[0].value) for item in ast.walk(node)
                        if isinstance(item, ast.Call) and _name(item) == "State" and item.args
                        and isinstance(item.args[0], ast.Constant)]
                    self._scope.append(node.name)
                    self._block(node.body)
                    self._scope.pop()
                    self._states = states
            case ast.With():
                for item in node.items:
                    self._expression(item.context_expr)
                self._block(node.body)
            case ast.If():
                # What is checked, not made.
                if not (isinstance(node.body[-1], ast.Raise) and not node.orelse):
                    self._replace("condition", node.test, f"not ({self._source(node.test)})")
                    self._expression(node.test)
                    self._block(node.body)
                    self._block(node.orelse)
            case ast.For():
                self._expression(node.iter)
                self._block(node.body)
            case ast.While():
                self._block(node.body)      # another bound might never be reached
            case ast.AugAssign():
                if _is_domain(node.target):
                    self._assignments(node.value)
                self._expression(node.value)
            case ast.Assign():
                target = node.targets[0]
                if isinstance(target, ast.Attribute) and target.attr == "next":
                    self._replace("assignment", node, "pass")
                    for state in self._states:
                        self._replace("state", node.value, f'"{state}"')
                elif not (isinstance(target, ast.Name) and target.id == "__all__"):
                    self._note_wires(target, node.value)
                    self._expression(node.value)
            case ast.AnnAssign():
                if node.value is not None:
                    self._expression(node.value)
            case ast.Return():
                if node.value is not None:
                    self._expression(node.value)
            case ast.Expr():
                if isinstance(node.value, ast.Call):
                    if _name(node.value) != "__init__":
                        self._replace("assignment", node, "pass")
                    self._expression(node.value)
            case _:         # imports, assertions, raise
                pass

    def _assignments(self, value: ast.expr) -> None:
        """Leave out each statement of ``m.d.DOMAIN += value``."""
        if isinstance(value, ast.List) and len(value.elts) > 1:
            for element in value.elts:
                self._replace("assignment", element, "*[]")
        else:
            self._replace("assignment", value, "[]")

    def _note_wires(self, target: ast.expr, value: ast.expr) -> None:
        """Note which calls make a signal that no clock drives: it has nothing to reset."""
        targets, values = ((target.elts, value.elts) if isinstance(target, ast.Tuple)
                           and isinstance(value, ast.Tuple) else ([target], [value]))
        for name, call in zip(targets, values, strict=False):
            if isinstance(name, ast.Name) and name.id not in self._registers:
                self._wires.add(id(call))

    # Expressions.

    def _expression(self, node: ast.AST) -> None:
        match node:
            case ast.JoinedStr():
                return
            case ast.Compare():
                operands = [node.left, *node.comparators]
                for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
                    if type(operator) in _COMPARISONS:
                        self._between("comparison", left, right, *_COMPARISONS[type(operator)])
            case ast.BinOp():
                if type(node.op) in _BINARY:
                    self._between("operation", node.left, node.right, *_BINARY[type(node.op)])
                if isinstance(node.op, ast.BitAnd | ast.BitOr):
                    for operand in (node.left, node.right):
                        self._replace("operand", node, f"({self._source(operand)})")
            case ast.UnaryOp():
                if isinstance(node.op, ast.Invert | ast.USub | ast.Not):
                    self._replace("negation", node, f"({self._source(node.operand)})")
            case ast.IfExp():
                self._replace("condition", node.test, f"not ({self._source(node.test)})")
            case ast.Subscript():
                self._subscript(node)
            case ast.Constant():
                self._constant(node)
                return
            case ast.Call():
                self._call(node)
                return
        for child in ast.iter_child_nodes(node):
            self._expression(child)

    def _constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace("constant", node, str(not node.value))
        elif isinstance(node.value, int):
            for value in {node.value + 1, abs(node.value - 1)}:
                self._replace("constant", node, str(value))

    def _by_one(self, node: ast.expr) -> None:
        """Make a bound that is no constant one more and one less."""
        if not isinstance(node, ast.Constant | ast.UnaryOp):
            self._replace("bound", node, f"({self._source(node)}) + 1")
            self._replace("bound", node, f"({self._source(node)}) - 1")

    def _subscript(self, node: ast.Subscript) -> None:
        index = node.slice
        if not isinstance(index, ast.Slice):
            if not isinstance(index, ast.Constant | ast.Tuple | ast.JoinedStr):
                self._by_one(index)
            return
        for bound in (index.lower, index.upper):
            if bound is not None:
                self._by_one(bound)
        if index.lower is not None and index.upper is not None and index.step is None:
            lower, upper = self._source(index.lower), self._source(index.upper)
            self._replace("bound", index, f"({lower}) + 1:({upper}) + 1")

    def _call(self, node: ast.Call) -> None:
        name = _name(node)
        if name in self._checks or name in _CONTRACTS or re.match("_?check", name):
            return
        special: dict[str, Callable[[ast.Call], None]] = {
            "If": self._if, "Elif": self._if, "Else": self._else, "Mux": self._mux,
            "Signal": self._signal, "like": self._signal,
            "any": functools.partial(self._reduction, "any", "all"),
            "all": functools.partial(self._reduction, "all", "any"),
        }
        if name in special:
            special[name](node)
        if name == "range" or name in _SELECTIONS:
            for argument in node.args:
                self._by_one(argument)
        if isinstance(node.func, ast.Attribute):
            self._expression(node.func.value)
        for argument in node.args:
            self._expression(argument)
        for keyword in node.keywords:
            if keyword.arg not in ("name", "reset_less", "domain"):
                self._expression(keyword.value)

    def _if(self, node: ast.Call) -> None:
        condition = node.args[0]
        self._replace("condition", condition, f"({self._source(condition)}) == 0")
        self._replace("condition", condition, "C(1)")
        self._replace("condition", condition, "C(0)")
        if _name(node) == "Elif":
            self._replace_name(node, "If")

    def _else(self, node: ast.Call) -> None:
        self._replace("branch", node, self._source(node).replace("Else()", "If(1)"))

    def _replace_name(self, node: ast.Call, new: str) -> None:
        end = self._span(node.func)[1]
        self._add("branch", end - len(_name(node)), end, new)

    def _mux(self, node: ast.Call) -> None:
        condition, yes, no = node.args
        self._replace("condition", condition, f"({self._source(condition)}) == 0")
        start, end = self._span(yes)[0], self._span(no)[1]
        self._add("branch", start, end, f"{self._source(no)}, {self._source(yes)}")

    def _reduction(self, old: str, new: str, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and not node.args:
            end = self._span(node.func)[1]
            self._add("negation", end - len(old), end, new)

    def _signal(self, node: ast.Call) -> None:
        given = {keyword.arg for keyword in node.keywords}
        if isinstance(node.func, ast.Attribute) and not (
                isinstance(node.func.value, ast.Name) and node.func.value.id == "Signal"):
            return
        if node.args and isinstance(node.func, ast.Name) and not isinstance(node.args[0], ast.Call):
            self._by_one(node.args[0])
        if "reset_less" in given or id(node) in self._wires:
            return
        end = self._span(node)[1] - 1
        comma = "" if self._raw[end - 1:end] in b"(," else ", "
        self._add("reset", end, end, f"{comma}reset_less=True")
        if "init" not in given:
            self._add("reset", end, end, f"{comma}init=1")


def _name(node: ast.Call) -> str:
    """Return the last name of what is called."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _assigned(value: ast.expr) -> set[str]:
    """Return the names in what statements ``TARGET.eq(...)`` in ``value`` drive."""
    return {name.id for call in ast.walk(value) if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute) and call.func.attr == "eq"
            for name in ast.walk(call.func.value) if isinstance(name, ast.Name)}


def _is_domain(node: ast.expr) -> bool:
    """Return whether ``node`` is ``m.d.DOMAIN`` or ``m.d[DOMAIN]``."""
    return (isinstance(node, ast.Attribute | ast.Subscript)
            and isinstance(node.value, ast.Attribute) and node.value.attr == "d")


def _stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip("\n").splitlines()).strip()
