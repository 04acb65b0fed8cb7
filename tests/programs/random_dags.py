"""Random DAGs of elementwise ops, run again and again: a program that nobody wrote a plan for.

    python random_dags.py SEED [--dags N] [--iterations N] [--only K] [--source]

Each DAG is a small Python function (--source prints them): 3 to 12 ops on a few thousand elements, operands that are
tensors, numbers, rows, columns, slices and transposed tensors, results seen through other shapes, and one op in place.
Some results are kept to the end, others are dropped after their last use. Whatever is kept is hashed as it lies in
memory, every iteration. The first line says how many elementwise ops an iteration has, the others are each DAG's hash
over all iterations.

Values stay finite: ops are chosen by the interval that their operands lie in. (Which of two different NaNs survives an
op depends, in the framework itself, on where an element lies.) Zeros of both signs and denormal numbers are there.
"""
import argparse
import hashlib
import math
import random
import re

LIMIT = 1e4
INTERVALS = {"signed": (-2, 2), "positive": (0.5, 2)}  # of leaves


# ---- intervals ----

def product(a, b):
    ends = [x * y for x in a for y in b]
    return min(ends), max(ends)


def total(a, b):
    return a[0] + b[0], a[1] + b[1]


def hull(a, b):
    return min(a[0], b[0]), max(a[1], b[1])


def inverse(a):
    return (1 / a[1], 1 / a[0]) if away_from_zero(a) else None


def away_from_zero(a):
    return a[0] >= 0.05 or a[1] <= -0.05


def quotient(a, b):
    return product(a, inverse(b)) if away_from_zero(b) else None


def clipped(a, low, high):
    return min(max(a[0], low), high), min(max(a[1], low), high)


def even_power(a):
    ends = [x * x for x in a]
    return (0 if a[0] < 0 < a[1] else min(ends)), max(ends)


def ignoring(result):
    return lambda a: result


# Name of the method, its arguments, the result's interval (None: not with these operands).
UNARY = [
    ("neg", "", lambda a: (-a[1], -a[0])),
    ("abs", "", lambda a: (0, max(-a[0], a[1])) if a[0] < 0 else a),
    ("relu", "", lambda a: clipped(a, 0, math.inf)),
    ("tanh", "", ignoring((-1, 1))),
    ("erf", "", ignoring((-1, 1))),
    ("sin", "", ignoring((-1, 1))),
    ("cos", "", ignoring((-1, 1))),
    ("atan", "", ignoring((-1.6, 1.6))),
    ("trunc", "", lambda a: hull(a, (0, 0))),
    ("exp", "", lambda a: (math.exp(a[0]) * 0.99, math.exp(a[1]) * 1.01) if -50 < a[0] and a[1] < 9 else None),
    ("log", "", lambda a: (math.log(a[0]) - 0.1, math.log(a[1]) + 0.1) if a[0] >= 0.05 else None),
    ("sqrt", "", lambda a: (math.sqrt(a[0]) * 0.99, math.sqrt(a[1]) * 1.01) if a[0] >= 0 else None),
    ("rsqrt", "", lambda a: (a[1] ** -0.5 * 0.99, a[0] ** -0.5 * 1.01) if a[0] >= 0.05 else None),
    ("reciprocal", "", inverse),
    ("pow", "2", even_power),
    ("pow", "3", lambda a: (a[0] ** 3, a[1] ** 3)),
    ("clamp", "-0.75, 1.5", lambda a: clipped(a, -0.75, 1.5)),
    ("clamp_min", "0.125", lambda a: clipped(a, 0.125, math.inf)),
]
# With a number N or a second tensor {1}.
BINARY = [
    ("mul", "{1}", product),
    ("add", "{1}", total),
    ("sub", "{1}", lambda a, b: (a[0] - b[1], a[1] - b[0])),
    ("div", "{1}", quotient),
]
# More than two operands, all with the elements of the result.
MANY = [
    ("add", "{1}, alpha=0.7", lambda a, b: total(a, product(b, (0.7, 0.7)))),
    ("sub", "{1}, alpha=0.3", lambda a, b: total(a, product(b, (-0.3, -0.3)))),
    ("lerp", "{1}, 0.25", hull),
    ("lerp", "{1}, 0.7", hull),
    ("addcmul", "{1}, {2}, value=0.5", lambda a, b, c: total(a, product((0.5, 0.5), product(b, c)))),
    ("addcdiv", "{1}, {2}, value=-0.4",
     lambda a, b, c: total(a, product((-0.4, -0.4), quotient(b, c))) if away_from_zero(c) else None),
]


def names_no_tensor(arguments):
    return not re.search(r"\b[vx]\d", arguments)


class Memory:
    def __init__(self, interval):
        self.interval = interval


class Value:
    """Something that a DAG's source can name: a leaf, a view of one, or a result."""

    def __init__(self, text, memory):
        self.text = text
        self.memory = memory


class Dag:
    def __init__(self, rng, number):
        self.rng = rng
        self.number = number
        self.shape = self.random_shape()
        self.leaves = []  # shape and kind, in the order of the parameters
        self.values = []  # over the whole domain
        self.kept = []
        self.lines = []
        self.uses = {}    # name of a result: number of the last line that has it
        self.n_ops = 0
        self.n_results = 0
        length = rng.randint(3, 12)
        in_place_at = rng.randrange(1, length)
        self.dense_leaf()
        while self.n_ops < length:
            (self.in_place if self.n_ops == in_place_at else self.op)()
        self.kept.append(self.values[-1].text)

    def random_shape(self):
        rng = self.rng
        numel, ndim = rng.randint(1500, 9000), rng.choice([1, 2, 2, 2, 3, 4])
        shape = []
        for left in range(ndim, 1, -1):
            shape.append(rng.randint(2, max(2, int(2 * numel ** (1 / left)))))
            numel = max(numel // shape[-1], 2)
        return tuple(shape + [numel])

    # ---- operands ----

    def new_leaf(self, shape, kind):
        name = f"x{len(self.leaves)}"
        self.leaves.append((shape, kind))
        return Value(name, Memory(INTERVALS[kind]))

    def leaf_kind(self):
        return self.rng.choice(["signed", "positive"])

    def dense_leaf(self):
        """Behind the results: the newest value stays one that the DAG has computed."""
        leaf = self.new_leaf(self.shape, self.leaf_kind())
        self.values.insert(0, leaf)
        return leaf

    def full_leaf(self):
        """A tensor from outside with all the domain's elements: in order, or in another one."""
        form = self.rng.random()
        if form < 0.7:
            return self.dense_leaf()
        if form < 0.8:
            leaf = self.new_leaf((self.shape[0] + 3, *self.shape[1:]), self.leaf_kind())
            return Value(leaf.text + "[3:]", leaf.memory)
        if form < 0.9:
            leaf = self.new_leaf((*self.shape[:-1], self.shape[-1] + 5), self.leaf_kind())
            return Value(leaf.text + "[..., 5:]", leaf.memory)
        order = list(range(len(self.shape)))[::-1]
        leaf = self.new_leaf(self.shape[::-1], self.leaf_kind())
        return Value(f"{leaf.text}.permute({order})", leaf.memory)

    def broadcast_leaf(self):
        shape = self.shape
        return self.new_leaf(self.rng.choice([shape[-1:], (*shape[:-1], 1), (1, *shape[1:]), ()]), self.leaf_kind())

    def dense(self):
        """Mostly the newest value, so that the ops depend on each other."""
        if self.rng.random() < 0.15:
            return self.dense_leaf()
        return self.values[-1] if self.rng.random() < 0.6 else self.rng.choice(self.values)

    def other(self):
        """A second operand: dense, broadcast, a view, or a number."""
        form = self.rng.random()
        if form < 0.35:
            return self.rng.choice(self.values)
        if form < 0.55:
            return self.full_leaf()
        if form < 0.75:
            return self.broadcast_leaf()
        number = round(self.rng.choice([-1, 1]) * self.rng.uniform(0.2, 2.5), 3)
        return Value(f"({number})" if number < 0 else f"{number}", Memory((number, number)))

    def choose(self, first, allowed=lambda interval: True):
        """An op on `first` whose result stays within bounds: name, text of its arguments, interval."""
        while True:
            form = self.rng.random()
            table, operands = ((UNARY, [first]) if form < 0.45 else (BINARY, [first, None]) if form < 0.85
                               else (MANY, [first, None, None]))
            name, arguments, rule = self.rng.choice(table)
            before = list(self.leaves), list(self.values)
            if table is BINARY:
                operands[1] = self.other()
            elif table is MANY:
                operands = operands[:1] + [self.dense() for _ in range(2 if "{2}" in arguments else 1)]
            interval = rule(*(value.memory.interval for value in operands))
            if interval and max(map(abs, interval)) <= LIMIT and allowed(interval):
                texts = [value.text for value in operands]
                return name, arguments.format(*texts), interval
            self.leaves, self.values = before

    # ---- lines ----

    def emit(self, line):
        self.lines.append(line)
        self.uses.update(dict.fromkeys(re.findall(r"\bv\d+", line), len(self.lines) - 1))
        self.n_ops += 1

    def result(self, interval, text):
        name = f"v{self.n_results}"
        self.n_results += 1
        self.emit(f"{name} = {text}")
        return Value(name, Memory(interval))

    def op(self):
        first = self.dense()
        form = self.rng.random()
        if form < 0.03:
            return self.op_on_part(first)
        name, arguments, interval = self.choose(first)
        text = f"{first.text}.{name}({arguments})"
        if form < 0.14 and names_no_tensor(arguments):
            text = f"{first.text}.reshape(-1).{name}({arguments}).reshape({self.shape})"
        elif form < 0.17 and len(self.shape) > 1 and names_no_tensor(arguments):
            text = f"{first.text}.mT.{name}({arguments}).mT"
        value = self.result(interval, text)
        self.values.append(value)
        if self.rng.random() < 0.25:
            self.kept.append(value.text)

    def op_on_part(self, first):
        """Fewer elements than the rest of the DAG."""
        name, arguments, rule = self.rng.choice(UNARY[:8])
        part = self.result(rule(first.memory.interval), f"{first.text}[: {self.shape[0] // 2}].{name}({arguments})")
        self.kept.append(part.text)

    def in_place(self):
        """On a result, where anything goes; or on a leaf, which must not leave its interval, as it is there again in
        the next iteration. Seen as it is, flat, or in part."""
        results = [value for value in self.values if value.text[0] == "v"]
        target = self.rng.choice(results if results and self.rng.random() < 0.75 else self.values)
        before = target.memory.interval
        within = (lambda interval: True) if target.text[0] == "v" else (
            lambda interval: before[0] <= interval[0] and interval[1] <= before[1])
        name, arguments, interval = self.choose(target, within)
        view = ""
        if names_no_tensor(arguments):
            view = self.rng.choice(["", "", "", ".view(-1)", f"[: {self.shape[0] // 2}]"])
        self.emit(f"{target.text}{view}.{name}_({arguments})")
        target.memory.interval = hull(before, interval) if view.startswith("[") else interval
        self.kept.append(target.text)

    def source(self):
        lines = []
        kept = list(dict.fromkeys(self.kept))
        for i, line in enumerate(self.lines):
            lines.append(line)
            done = [name for name, last in self.uses.items() if last == i and name not in kept]
            lines += [f"del {', '.join(done)}"] if done else []
        parameters = ", ".join(f"x{i}" for i in range(len(self.leaves)))
        body = "\n".join("    " + line for line in lines)
        return f"def dag_{self.number}({parameters}):  # {self.shape}\n{body}\n    return {', '.join(kept)},\n"


# ---- running ----

def make_leaf(torch, generator, shape, kind):
    low, high = INTERVALS[kind]
    leaf = torch.empty(shape).uniform_(low, high, generator=generator)
    flat = leaf.view(-1)
    if kind == "signed" and flat.numel() >= 64:
        for i, special in enumerate((0.0, -0.0, 1e-40, -1e-42)):
            flat[7 + i::97] = special
    return leaf


def run(dags, seed, iterations):
    import torch  # --source does without

    generator = torch.Generator().manual_seed(seed)
    jobs = []
    for dag in dags:
        names = {}
        exec(compile(dag.source(), f"dag_{dag.number}", "exec"), names)
        leaves = [make_leaf(torch, generator, shape, kind) for shape, kind in dag.leaves]
        jobs.append((dag, names[f"dag_{dag.number}"], leaves, hashlib.sha256()))
    with torch.no_grad():
        for _ in range(iterations):
            for _, function, leaves, digest in jobs:
                for result in function(*leaves):
                    digest.update(result.contiguous().numpy())
    print(f"{sum(dag.n_ops for dag in dags)} elementwise ops in {len(dags)} DAGs")
    for dag, _, _, digest in jobs:
        print(f"dag {dag.number} {digest.hexdigest()[:16]}")


def main():
    parser = argparse.ArgumentParser(description="Random DAGs of elementwise ops.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--dags", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--only", type=int, help="run one DAG alone, on other data than among the rest")
    parser.add_argument("--source", action="store_true", help="print the functions and stop")
    options = parser.parse_args()
    dags = [Dag(random.Random(f"{options.seed} {number}"), number) for number in range(options.dags)]
    if options.only is not None:
        dags = [dags[options.only]]
    if options.source:
        print("\n\n".join(dag.source() for dag in dags))
    else:
        run(dags, options.seed, options.iterations)


if __name__ == "__main__":
    main()
