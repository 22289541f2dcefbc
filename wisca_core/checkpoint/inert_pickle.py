"""A pickle read as data: the few instructions that describe plain values are interpreted, all others are refused.

Nothing is looked up, called or built by Python: names become the inert records that ``Rules`` gives for them.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

MAX_INSTRUCTIONS = 4_000_000  # a tensor takes about 30
# A value that is used in many places is written once, so a few hundred bytes can describe a tuple whose hash or text
# never ends. What is handed on has at most this many values with every repetition written out, and holds nothing of
# itself.
MAX_VALUES = 8 * MAX_INSTRUCTIONS


class NotPlain(Exception):
    """The pickle does something other than describe plain values; the text says what."""


def _refuse(what: str) -> Callable:
    def refuse(*_: object) -> object:
        raise NotPlain(what)

    return refuse


@dataclass(frozen=True)
class Rules:
    """What a kind of file may hold. Every function raises NotPlain for anything else.

    ``look_up(module, name)`` -> record; ``call(record, arguments)`` -> value; ``key(value)`` -> a dict key;
    ``reference(identity)`` -> value of a persistent id; ``new(record, arguments)`` -> an object without state;
    ``build(target, state)`` gives it its state; ``inside(record)`` are the values that a record of these rules holds.
    """

    look_up: Callable[[object, object], object]
    call: Callable[[object, object], object]
    key: Callable[[object], object]
    build: Callable[[object, object], None]
    reference: Callable[[object], object] = _refuse("it refers to something outside the pickle")
    new: Callable[[object, object], object] = _refuse("it makes an object")
    inside: Callable[[object], tuple] = lambda record: ()


_MARK = object()


def interpret(program: bytes, rules: Rules) -> object:
    """The value the pickle describes, made of dicts, lists, tuples, numbers, strings and the records of ``rules``.

    NotPlain where it does more; ValueError, IndexError, KeyError, TypeError, AttributeError or OverflowError where it
    is damaged.
    """
    stack: list = []
    memo: dict[int, object] = {}

    def above_mark() -> list:
        at = next((i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK), None)
        if at is None:
            raise ValueError("an end without a beginning")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if count > MAX_INSTRUCTIONS:
            raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode.name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(rules.look_up(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(rules.look_up(module, name))
            case "BINPERSID":
                stack.append(rules.reference(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(rules.call(function, arguments))
            case "APPEND":
                item = stack.pop()
                _target(stack, list).append(item)
            case "APPENDS":
                items = above_mark()
                _target(stack, list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _target(stack, dict)[rules.key(key)] = value
            case "SETITEMS":
                items = above_mark()
                _target(stack, dict).update(zip(map(rules.key, items[::2]), items[1::2], strict=True))
            case "BUILD":
                state = stack.pop()
                rules.build(stack[-1], state)
            case "NEWOBJ":
                arguments, kind = stack.pop(), stack.pop()
                stack.append(rules.new(kind, arguments))
            case "STOP":
                found = stack.pop()
                _check_size(found, rules.inside)
                return found
            case _:
                raise NotPlain(f"the pickle instruction {opcode.name}")
    raise ValueError("the pickle has no end")


def _check_size(value: object, inside: Callable[[object], tuple]) -> None:
    """ValueError where ``value`` holds itself, or over MAX_VALUES values with every repetition written out."""
    counts: dict[int, int] = {}  # by identity: how many values it stands for; 0 while it is being counted
    waiting = [value]
    while waiting:
        one = waiting[-1]
        if counts.get(id(one), 0):
            waiting.pop()
            continue
        parts = _parts(one, inside)
        if id(one) not in counts:
            counts[id(one)] = 0
            for part in parts:
                if counts.get(id(part)) == 0:
                    raise ValueError("a value that holds itself")
                if id(part) not in counts and _parts(part, inside):
                    waiting.append(part)
            continue
        counts[id(one)] = total = 1 + sum(counts.get(id(part)) or 1 for part in parts)
        waiting.pop()
        if total > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values, the repeated ones counted each time")


def _parts(value: object, inside: Callable[[object], tuple]) -> tuple | list:
    match value:
        case tuple() | list():
            return value
        case dict():
            return [*value, *value.values()]
        case None | bool() | int() | float() | str():
            return ()
    return inside(value)


def _target(stack: list, kind: type) -> list | dict:
    if type(stack[-1]) is not kind:
        raise NotPlain(f"it changes an object that is no {kind.__name__}")
    return stack[-1]
