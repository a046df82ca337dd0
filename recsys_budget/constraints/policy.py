"""A policy: the rules of an owner as one value that can be named, hashed, written down and compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from recsys_budget import _html
from recsys_budget._style import clip
from recsys_budget.constraints import amounts, engagement, population, slate
from recsys_budget.constraints.base import Constraint, Soft, hard_part
from recsys_budget.errors import DataError, SpecificationError

# Every kind of rule that a policy can be read from: the public constraints, by class name.
KINDS: dict[str, type[Constraint]] = {
    name: kind
    for module in (slate, amounts, engagement, population)
    for name, kind in vars(module).items()
    if isinstance(kind, type)
    and issubclass(kind, Constraint)
    and kind.__module__ == module.__name__
    and not name.startswith("_")
}

# Deeper or longer than any policy, so that a hostile file is refused before it costs anything.
_DEEPEST, _LONGEST = 6, 1_000_000

# Characters that YAML does not take as they are, or takes for the end of a line, and halves of characters.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")

_EXPONENT = re.compile(r"-?[0-9]+(\.[0-9]+)?[eE][+-]?[0-9]+")

Verdict = Literal["added", "removed", "tightened", "loosened", "changed"]


@dataclass(frozen=True)
class Change:
    """How one rule differs between two policies.

    Attributes:
        verdict: ``"tightened"`` when each slate that satisfies the new rule satisfies the old one as well,
            and ``"loosened"`` the other way round; ``"changed"`` when neither is certain or only the words
            differ.
        before: The rule in the older policy; None when added.
        after: The rule in the newer policy; None when removed.
    """

    verdict: Verdict
    before: Constraint | None
    after: Constraint | None

    def __str__(self) -> str:
        old, new = (None if rule is None else _in_words(rule) for rule in (self.before, self.after))
        if old is None or new is None:
            return f"{self.verdict}: {new or old}"
        return f"{self.verdict}: {old} -> {new}"


@dataclass(frozen=True)
class Policy:
    """A named, immutable set of constraints.

    Attributes:
        name: How people call it.
        constraints: The rules; their names are unique.

    Raises:
        SpecificationError: The name is empty, or two rules share a name.

    Examples:
        >>> from recsys_budget.constraints import CategoryMinimum, SlateSize
        >>> spring = Policy("spring", [SlateSize(10), CategoryMinimum("Documentary", 2, reason="our remit")])
        >>> print(spring.to_yaml(), end="")
        policy: spring
        constraints:
        - kind: SlateSize
          k: 10
        - kind: CategoryMinimum
          category: Documentary
          count: 2
          reason: our remit
        >>> summer = Policy("summer", [SlateSize(10), CategoryMinimum("Documentary", 1, reason="our remit")])
        >>> [str(change) for change in spring.diff(summer)]
        ['loosened: at least 2 Documentary -> at least 1 Documentary']
    """

    name: str
    constraints: Sequence[Constraint] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecificationError(f"a policy needs a name, not {self.name!r}")
        object.__setattr__(self, "constraints", tuple(self.constraints))
        require_unique_names(self.constraints)

    def __iter__(self) -> Iterator[Constraint]:
        return iter(self.constraints)

    def __len__(self) -> int:
        return len(self.constraints)

    @property
    def sha256(self) -> str:
        """SHA-256 of the policy's canonical JSON, in hexadecimal: equal policies have equal hashes.

        Raises:
            SpecificationError: A rule cannot be written down; see :meth:`to_dict`.
        """
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain Python values; what has its default value is left out.

        Raises:
            SpecificationError: A rule is of a kind that cannot be written down, such as ``Custom``.
        """
        return {"policy": self.name, "constraints": [_to_entry(rule) for rule in self.constraints]}

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no spaces, text as it is but for what does not print."""
        plain = self.to_dict()
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

    def to_yaml(self) -> str:
        """YAML to read and edit, which :meth:`from_yaml` reads back to an equal policy."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)

    @classmethod
    def from_yaml(cls, text: str, *, path: str | PathLike[str] | None = None) -> Policy:
        """Read a policy from YAML, or from JSON, which is YAML too.

        Nothing but plain values is made of the text, whoever wrote it.

        Args:
            text: The whole document.
            path: Where it is from, for errors.

        Raises:
            DataError: The text is not YAML, uses anchors or tags, repeats a key, or says something that is no
                policy; the error names the line and quotes it.
        """
        return _Reader(text, path).policy()

    from_json = from_yaml

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Policy:
        """Read a policy from a YAML or JSON file.

        Raises:
            DataError: The file cannot be read, or as for :meth:`from_yaml`.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read as text: {error}", path=path) from error
        return cls.from_yaml(text, path=path)

    def diff(self, newer: Policy) -> tuple[Change, ...]:
        """What a newer policy changes, rule by rule; empty when the rules are the same.

        Rules are matched by kind and by what they are about (category, item, provider, discount), so that a
        changed number is one change and not two. Rules kept as they are, in whatever order, are not listed.

        Args:
            newer: The policy to compare with.

        Returns:
            Changed and removed rules in the order of this policy, then added ones in the order of the newer.
        """
        waiting: dict[Hashable, list[Constraint]] = defaultdict(list)
        for rule in newer.constraints:
            waiting[_subject(rule)].append(rule)
        changes = []
        for before in self.constraints:
            same = waiting[_subject(before)]
            if before in same:
                same.remove(before)
                continue
            # Several rules may be about the same thing: a rule kept under its name is the same rule.
            rest = [rule for rule in same if rule not in self.constraints]
            named = [rule for rule in rest if rule.name == before.name]
            after = (named or rest or [None])[0]  # type: ignore[list-item]
            if after is not None:
                same.remove(after)
            changes.append(Change(_verdict(before, after), before, after))
        added = {id(rule) for rules in waiting.values() for rule in rules}
        return (*changes, *(Change("added", None, rule) for rule in newer.constraints if id(rule) in added))

    def _repr_html_(self) -> str:
        """The rules and their reasons; everything that somebody wrote is escaped."""
        rows = [
            (
                clip(rule.name),
                "hard" if rule.hard else f"soft, {rule.penalty:g} a unit",
                "each slate" if rule.scope == "user" else "all slates",
                clip(rule.reason, 300),
            )
            for rule in self.constraints
        ]
        try:
            note = f"sha256 {self.sha256}"
        except SpecificationError:
            note = "No hash: a rule cannot be written down."
        return _html.card(
            f"Policy {clip(self.name)}",
            _html.table(rows, ["rule", "kind", "about", "reason"]) if rows else _html.text("no rules"),
            note=note,
        )


def require_unique_names(constraints: Sequence[Constraint]) -> None:
    """Raise SpecificationError unless all are constraints, and no two share a name."""
    names = set()
    for constraint in constraints:
        if not isinstance(constraint, Constraint):
            raise SpecificationError(f"{constraint!r} is not a constraint")
        if constraint.name in names:
            raise SpecificationError(
                f"constraints share the name {constraint.name!r}; pass name= to tell them apart"
            )
        names.add(constraint.name)


def _to_entry(rule: Constraint) -> dict[str, Any]:
    inner = hard_part(rule)
    kind = type(inner).__name__
    if KINDS.get(kind) is not type(inner):
        raise SpecificationError(
            f"constraint {rule.name!r} is a {kind}, which cannot be written down; a policy file holds "
            f"{', '.join(sorted(KINDS))}"
        )
    entry: dict[str, Any] = {"kind": kind}
    for field in fields(inner):
        value = getattr(inner, field.name)
        if field.name not in ("name", "reason") and value != field.default:
            entry[field.name] = _plain(value)
    if isinstance(rule, Soft):
        entry["soft"] = float(rule.weight)
    if rule.name != inner.default_name():
        entry["name"] = rule.name
    if rule.reason:
        entry["reason"] = rule.reason
    return entry


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _subject(rule: Constraint) -> Hashable:
    """What a rule is about: its kind, and every field but those that say how much."""
    inner = hard_part(rule)
    about = (f.name for f in fields(inner) if f.name not in ("name", "reason", *inner.tighter))
    # Which of two ways of giving a number is used belongs to what a rule is about.
    given = tuple(name for name in inner.tighter if getattr(inner, name) is None)
    if isinstance(inner, slate.SlateSize):
        return type(inner)
    return (type(inner), *(getattr(inner, name) for name in about), given)


def _verdict(before: Constraint, after: Constraint | None) -> Verdict:
    if after is None:
        return "removed"
    old, new = hard_part(before), hard_part(after)
    ways = set()
    for name, sign in old.tighter.items():
        was, becomes = getattr(old, name), getattr(new, name)
        if was != becomes:
            if isinstance(was, str) or isinstance(becomes, str):
                return "changed"
            ways.add("tightened" if sign * (becomes - was) > 0 else "loosened")
    if before.penalty != after.penalty:
        ways.add("tightened" if after.penalty > before.penalty else "loosened")
    return ways.pop() if len(ways) == 1 else "changed"  # type: ignore[return-value]


def _in_words(rule: Constraint) -> str:
    return rule.name if rule.hard else f"{rule.name} (soft, {rule.penalty:g} a unit)"


class _Dumper(yaml.SafeDumper):
    """Plain values, with text in quotes where it does not print or looks like a number in JSON."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        plain = text.isprintable() and not _EXPONENT.fullmatch(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


class _Reader:
    """One document on its way to a policy, with the line of each value at hand."""

    def __init__(self, text: str, path: str | PathLike[str] | None) -> None:
        self._text, self._path = text, path

    def policy(self) -> Policy:
        top = self._mapping(self._root())
        for key, (at, _) in top.items():
            if key not in ("policy", "constraints"):
                raise self._error(
                    at, f"{key!r} is not part of a policy, which has 'policy' and 'constraints'"
                )
        for key in ("policy", "constraints"):
            if key not in top:
                raise self._error(
                    self._root(), f"{key!r} is missing; a policy has 'policy' and 'constraints'"
                )
        at, node = top["constraints"]
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(at, "'constraints' must be a list")
        rules = [self._rule(entry) for entry in node.value]
        try:
            return Policy(self._value(top["policy"][1]), rules)
        except SpecificationError as error:
            raise self._error(at, str(error)) from error

    def _root(self) -> yaml.Node:
        if len(self._text) > _LONGEST:
            raise DataError(f"longer than any policy ({_LONGEST} characters)", path=self._path)
        try:
            depth = 0
            for event in yaml.parse(self._text, Loader=yaml.SafeLoader):
                if isinstance(event, yaml.CollectionStartEvent):
                    depth += 1
                elif isinstance(event, yaml.CollectionEndEvent):
                    depth -= 1
                tag = getattr(event, "tag", None)
                if depth > _DEEPEST or tag is not None or getattr(event, "anchor", None) is not None:
                    raise self._error(event, "no policy nests as deep, or uses tags, anchors and aliases")
            root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", None) or str(error)
            raise self._at(None if mark is None else mark.line, f"this is not YAML: {what}") from error
        if root is None:
            raise DataError(
                "there is nothing in it; a policy has 'policy' and 'constraints'", path=self._path
            )
        return root

    def _mapping(self, node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key to (node of the key, node of the value)."""
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, "expected names with values, such as 'kind: SlateSize'")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = self._value(key)
            if not isinstance(name, str):
                raise self._error(key, f"{name!r} is not a name")
            if name in found:
                raise self._error(key, f"{name!r} is given twice")
            found[name] = (key, value)
        return found

    def _rule(self, node: yaml.Node) -> Constraint:
        entry = self._mapping(node)
        if "kind" not in entry:
            raise self._error(node, "a constraint needs 'kind'")
        at, named = entry.pop("kind")
        kind = self._value(named)
        if not isinstance(kind, str) or kind not in KINDS:
            raise self._error(
                at, f"there is no constraint of kind {kind!r}; there are {', '.join(sorted(KINDS))}"
            )
        known = [field.name for field in fields(KINDS[kind])]
        for name, (key, _) in entry.items():
            if name not in (*known, "soft"):
                raise self._error(key, f"{kind} has no {name!r}; it has {', '.join((*known, 'soft'))}")
        values = {name: self._value(value) for name, (_, value) in entry.items()}
        weight = values.pop("soft", None)
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        try:
            rule = KINDS[kind](**values)
            return rule if weight is None else Soft(rule, weight)
        except (SpecificationError, TypeError) as error:
            # A TypeError is a field left out: all names were checked, and constructors check all values.
            raise self._error(node, str(error).replace("__init__()", kind)) from error

    def _value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.style is None and _EXPONENT.fullmatch(node.value):
            return float(node.value)  # a number in JSON, but text in YAML 1.1
        loader = yaml.SafeLoader("")
        try:
            value = loader.construct_document(node)
            # JSON escapes a character beyond 16 bits as a pair, which YAML reads as two.
            return (
                value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value
            )
        except (yaml.YAMLError, ValueError) as error:
            raise self._error(node, f"this is no value: {error}") from error
        finally:
            loader.dispose()

    def _error(self, where: yaml.Node | yaml.Event, message: str) -> DataError:
        mark = where.start_mark
        return self._at(None if mark is None else mark.line, message)

    def _at(self, line: int | None, message: str) -> DataError:
        if line is None:
            return DataError(message, path=self._path)
        lines = self._text.splitlines()
        quoted = lines[line].strip()[:100] if line < len(lines) else ""
        if quoted:
            return DataError(f"{message}. The line says: {quoted!r}", path=self._path, line=line + 1)
        # What is missing is noticed after the last line that says anything.
        last = max((at for at, each in enumerate(lines[:line]) if each.strip()), default=None)
        if last is None:
            return DataError(f"{message}. The file is empty up to there", path=self._path, line=line + 1)
        quoted = lines[last].strip()[:100]
        said = f"{message}. It was noticed after the last line before it, which says: {quoted!r}"
        return DataError(said, path=self._path, line=last + 1)
