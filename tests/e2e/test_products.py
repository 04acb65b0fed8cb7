"""Matrix products in tiles: the framework's bits, and only for calls like those that the plan's check compared."""
import os
import re

from harness import PYTHON, REPLAY, clean_env, main, make_plan, program, run, skip, temporary_folder, test

SCRIPT = program("products.py")
_state = {}


def plan():
    """The plan of the products, and its text."""
    if "plan" not in _state:
        folder = _state["folder"] = temporary_folder()
        _state["plan"] = make_plan(os.path.join(folder.name, "products"), [SCRIPT, "--trace"])
    with open(_state["plan"], "rb") as file:
        return _state["plan"], file.read()


PRODUCTS = {"logits": b"aten::mm form=sgemm_tiles shape=512x8321x48,", "grad_x": b"aten::mm form=sgemm_tiles shape=512x48x8321,",
            "grad_w": b"aten::mm form=sgemm_tiles shape=8321x48x512,", "dense": b"aten::addmm form=sgemm_tiles shape=64x520x300,"}


def need_products():
    """The plan, and which products it has kernels for: where the vendor's library adds up tiles in another order, none."""
    path, text = plan()
    found = {name for name, line in PRODUCTS.items() if line in text}
    if not found & {"logits", "dense"}:
        skip("on this machine the vendor's library adds up tiles in another order")
    return path, found


def counts(err):
    """By variation: how many ops were replaced, and the products that should be."""
    return {name: (int(have), want.split()) for name, have, want in re.findall(r"^(.*): (\d+) replaced, expected(.*)$", err, re.M)}


@test(timeout=300)
def same_bits_and_only_what_was_checked():
    "Every variation has eager's bits; the kernel runs exactly where the call is like the checked one."
    path, found = need_products()
    eager = run([PYTHON, SCRIPT], timeout=120)
    replay = run([PYTHON, SCRIPT], env=clean_env({"TERRA_PLAN": path}, preload=REPLAY), timeout=120)
    assert replay.stdout == eager.stdout, f"replay printed\n{replay.stdout}\neager\n{eager.stdout}"
    seen = counts(replay.stderr)
    assert len(seen) == 16, replay.stderr
    wrong = {name: n for name, n in seen.items() if n[0] != sum(product in found for product in n[1])}
    assert not wrong, f"replaced and expected: {wrong}, of {found}"


@test(timeout=120)
def vendor_settings_switch_it_off():
    "The vendor's library reads settings from the environment that change its bits: with any of them nothing is replaced."
    path, _ = need_products()
    env = {"MKL_CBWR": "COMPATIBLE"}
    eager = run([PYTHON, SCRIPT], env=clean_env(env), timeout=120)
    replay = run([PYTHON, SCRIPT], env=clean_env({**env, "TERRA_PLAN": path}, preload=REPLAY), timeout=120)
    assert replay.stdout == eager.stdout
    assert {n for n, _ in counts(replay.stderr).values()} == {0}, replay.stderr


if __name__ == "__main__":
    main()
