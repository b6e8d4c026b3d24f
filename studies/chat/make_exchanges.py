"""
Write exchanges.jsonl: conversations of simple questions, each of which has one right answer.

    python studies/chat/make_exchanges.py

Capitals, opposites, sums, the number that follows, words to repeat, and names to remember from one turn to the next.
The same file comes out each time.
"""

import json
import random
from pathlib import Path

CONVERSATIONS = 320
CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "England": "London",
    "Scotland": "Edinburgh",
    "Ireland": "Dublin",
    "Denmark": "Copenhagen",
    "Norway": "Oslo",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Portugal": "Lisbon",
}
OPPOSITES = ["hot cold", "day night", "war peace", "love hate", "old young", "rich poor", "good bad", "high low"]
OPPOSITES += ["life death", "friend enemy", "light dark", "fast slow"]
WORDS = ["moon", "crown", "sword", "rose", "king", "storm", "river", "candle"]
WORDS += ["garden", "winter", "honey", "thunder", "mirror", "silver", "raven", "castle"]
NAMES = ["Ann", "Henry", "Juliet", "Tom", "Rosalind", "Will", "Mary", "Hugh", "Emilia", "Frank", "Grace", "Peter"]


def capital(draw: random.Random) -> list[str]:
    country = draw.choice(list(CAPITALS))
    return [f"What is the capital of {country}?", f"{CAPITALS[country]}."]


def opposite(draw: random.Random) -> list[str]:
    pair = draw.choice(OPPOSITES).split()
    draw.shuffle(pair)
    return [f"What is the opposite of {pair[0]}?", f"{pair[1]}."]


def total(draw: random.Random) -> list[str]:
    a, b = draw.randint(1, 9), draw.randint(1, 9)
    return [f"What is {a} and {b}?", f"{a + b}."]


def following(draw: random.Random) -> list[str]:
    number = draw.randint(1, 30)
    return [f"Which number follows {number}?", f"{number + 1}."]


def echo(draw: random.Random) -> list[str]:
    words = " ".join(draw.sample(WORDS, 2))
    return [f"Repeat after me: {words}.", f"{words}."]


def name(draw: random.Random) -> list[str]:
    given, (question, answer) = draw.choice(NAMES), opposite(draw)
    return [f"My name is {given}.", f"Hello, {given}.", question, answer, "What is my name?", f"{given}."]


def main() -> None:
    """Write the file beside this script."""
    draw, lines, kinds = random.Random(1), [], [capital, opposite, total, following, echo, name]
    for _ in range(CONVERSATIONS):
        turns = [text for kind in draw.sample(kinds, 2) for text in kind(draw)]
        roles = ["user", "assistant"] * (len(turns) // 2)
        messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
        lines.append(json.dumps({"messages": messages}, separators=(",", ":")) + "\n")
    Path(__file__).with_name("exchanges.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
