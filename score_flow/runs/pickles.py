"""Pickles as plain data: their instructions are listed (pickletools) and interpreted; none imports or calls anything.

A pickle is a program for a stack machine. What is not in the tables here and in those of a reader is refused by name.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from score_flow.errors import UserError

SHOWN = 80  # characters of a hostile name that an error repeats

VALUES: dict[str, Callable[[Any], Any]] = {  # the instructions that put a value on the stack, from their argument
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), lambda number: number),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda text: text),
}


@dataclasses.dataclass(frozen=True)
class Function:
    """What stands for a function or a class of a library, to be applied to plain data."""

    apply: Callable[..., Any]


class Machine:
    """Pickle's stack machine with the instructions that arrays need, and no others; a subclass says what it knows.

    limit: bytes that an array may take. Errors are UserErrors that do not name the file; hostile contents raise almost
    any other, too.
    """

    named: Mapping[str, Any] = {}  # what a pickle may name: plain values, and a Function
    values = VALUES
    subject = "data"  # what an error calls the contents

    def __init__(self, limit: int):
        self._limit = limit
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the rest of the stack, cut at each mark
        self._memo: dict[int, Any] = {}

    def refer(self, identity: Any) -> Any:
        """Return what lies outside of the pickle."""
        raise UserError("refers to something outside itself")

    def set_state(self, target: Any, state: Any) -> None:
        """Set the attributes of what a Function returned."""
        raise UserError("sets attributes of something that has none")

    def run(self, program: bytes) -> Any:
        """Return what the program leaves: dicts, lists, tuples, numbers, text, None and what Functions return."""
        for instruction, argument, _ in pickletools.genops(program):
            if instruction.name in self.values:
                self._stack.append(self.values[instruction.name](argument))
            else:
                self._obey(instruction.name, argument)
        (result,) = self._stack
        return result

    def _obey(self, instruction: str, argument: Any) -> None:
        stack = self._stack
        match instruction:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "TUPLE":
                items = self._pop_to_mark()
                self._stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(instruction[-1]))])))
            case "APPEND" | "APPENDS":
                self._extend([stack.pop()] if instruction == "APPEND" else self._pop_to_mark())
            case "SETITEM" | "SETITEMS":
                self._update([stack.pop(), stack.pop()][::-1] if instruction == "SETITEM" else self._pop_to_mark())
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack.append(self._global(".".join([stack.pop(), stack.pop()][::-1])))
            case "BINPERSID":
                stack.append(self.refer(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._apply(function, arguments))
            case "BUILD":
                state = stack.pop()
                self.set_state(self._stack[-1], state)
            case _:  # an older instruction that makes an object (INST) names its class
                what = argument.replace(" ", ".", 1) if type(argument) is str else f"the instruction {instruction}"
                raise UserError(f"holds {what[:SHOWN]!r}, which is code, not {self.subject}")

    def _global(self, name: Any) -> Any:
        if name not in self.named:
            raise UserError(f"holds {name[:SHOWN]!r}, which is code, not {self.subject}")
        return self.named[name]

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise UserError("appends to something that is no list")
        self._stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        target, keys = self._stack[-1], items[::2]
        # Only keys that hash at once: Python's hash of a deep tuple overflows the C stack.
        if not isinstance(target, dict) or not all(type(key) in (str, int) for key in keys):
            raise UserError("sets items of something else than a dict by names and numbers")
        target.update(zip(keys, items[1::2], strict=True))

    def _apply(self, function: Any, arguments: Any) -> Any:
        if type(function) is not Function or type(arguments) is not tuple:
            raise UserError("calls something that is no function")
        result = function.apply(*arguments)
        if isinstance(result, np.ndarray) and result.nbytes > self._limit:  # expanded views take nothing until copied
            raise UserError(f"has a tensor of size {result.shape}, {result.nbytes} bytes; allowed: {self._limit}")
        return result
