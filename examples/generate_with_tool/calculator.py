"""A model that may ask a calculator: `<calc>12*7</calc>` in its answer is followed by `<result>84</result>`.

In the run file:

    [rollout]
    generate = "examples.generate_with_tool.calculator:generate"

The result's tokens are read by the model and never trained; everything that the model writes is.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

from services.rollout.session import Session
from shared.messages import Prompt

OPEN, CLOSE = "<calc>", "</calc>"
MAX_CALLS = 4
MAX_EXPRESSION = 100

OPERATORS: dict[type[ast.operator | ast.unaryop], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


async def generate(prompt: Prompt, session: Session) -> str | None:
    """Sample until the model asks for no more calculation; the reward sees the last turn only."""
    for _ in range(MAX_CALLS):
        reply = await session.sample(stop=[CLOSE])
        if not reply.text.endswith(CLOSE):
            return reply.text
        expression = reply.text.removesuffix(CLOSE).rpartition(OPEN)[2]
        session.add(f"<result>{calculate(expression)}</result>")
    return (await session.sample()).text


def calculate(expression: str) -> str:
    """The value of sums, differences, products and quotients; `error` for anything else."""
    try:
        if len(expression) > MAX_EXPRESSION:
            return "error"
        return f"{_value(ast.parse(expression.strip(), mode='eval').body):g}"
    except (ValueError, SyntaxError, ArithmeticError, RecursionError):
        return "error"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.operand))
    raise ValueError(f"{ast.dump(node)} is no arithmetic")
