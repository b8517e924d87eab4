"""CONTRIBUTING.md, "Add an optimizer", carried out on a copy of the sources: an optimizer that the engine does not have
needs the places listed there and no others. Configuration, state, hyperparameters and kernels then have it."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("base", "config", "optim")
KERNELS = [f"zeropage/optim/{name}.cc" for name in ("update", "update_vectors", "packed_state", "convert")]
COMPILE_TIMEOUT_S = 300

# Heavy-ball momentum: m = beta1 * m + g; p = p - lr * m. Per file: a piece of the source, and its replacement.
HEAVY_BALL = {
    "config/config.h": [("kLamb, kClient };", "kLamb, kHeavyBall, kClient };")],
    "config/optimizers.cc": [
        (
            "OptimizerEntry lamb() {",
            """OptimizerEntry heavy_ball() {
  return {OptimizerKind::kHeavyBall, "HeavyBall", "Parameters of HeavyBall.", {"exp_avg", nullptr}, {false, false}, false,
          {lr(1e-2), betas(0.5, 0.9, "The first: decay of the momentum.")}, {}};
}

OptimizerEntry lamb() {""",
        ),
        ("sgd(), lamb()};", "sgd(), lamb(), heavy_ball()};"),
    ],
    "optim/rules.h": [
        (
            "/// Calls `call` with the rule of `step`.",
            """struct HeavyBallRule {
  static constexpr int kStates = 1;
  float gradient_scale;
  float beta1;
  float lr;

  HeavyBallRule() = default;
  explicit HeavyBallRule(const Step& step)
      : gradient_scale(step.gradient_scale),
        beta1(static_cast<float>(step.params.beta1)),
        lr(static_cast<float>(step.params.lr)) {}
};

/// Calls `call` with the rule of `step`.""",
        ),
        (
            "    case OptimizerKind::kNone:",
            "    case OptimizerKind::kHeavyBall: return call(HeavyBallRule(step));\n    case OptimizerKind::kNone:",
        ),
    ],
    "optim/elements.h": [
        (
            "}  // namespace zeropage::optim",
            """ZEROPAGE_ELEMENT float update_element(const HeavyBallRule& rule, float p, float& m, float&, float g) {
  m = rule.beta1 * m + g;
  return p - rule.lr * m;
}

}  // namespace zeropage::optim""",
        ),
    ],
    "optim/update_vectors.cc": [
        (
            "template <typename Rule, typename Gradient, typename Parameter>",
            """HWY_INLINE Vector update_vector(const HeavyBallRule& rule, Vector p, Vector& m, Vector&, Vector g) {
  m = hn::Add(hn::Mul(all(rule.beta1), m), g);
  return hn::Sub(p, hn::Mul(all(rule.lr), m));
}

template <typename Rule, typename Gradient, typename Parameter>""",
        ),
    ],
}

# Three updates by configuration, in vectors and in scalars, and what depends on the table.
PROGRAM = r"""
#include <cstdio>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/config/optimizers.h"
#include "zeropage/optim/update.h"

int main() {
  using namespace zeropage;
  const char* text = R"({"train_batch_size": 1, "optimizer": {"type": "HeavyBall", "params": {"lr": 0.25}}})";
  const auto optimizer = config::Config::from_json(text, 1).optimizer;
  const std::int64_t numel = 1003;  // whole vectors, and a rest
  std::vector<float> vectors(numel, 1.0F), scalars = vectors, first(numel), second(numel), gradient(numel, 0.5F);
  for (int step = 1; step <= 3; ++step) {
    optim::Arrays arrays;
    arrays.gradient = gradient.data();
    arrays.master = vectors.data(), arrays.states = {first.data(), nullptr};
    optim::update(arrays, numel, {.kind = optimizer.kind, .params = optimizer.params, .step = step});
    arrays.master = scalars.data(), arrays.states = {second.data(), nullptr};
    optim::update_reference(arrays, numel, {.kind = optimizer.kind, .params = optimizer.params, .step = step});
  }
  std::printf("%s %d %g %g %d\n", config::optimizer_name(optimizer.kind).c_str(),
              config::optimizer_state_count(optimizer), vectors.front(), vectors.back(),
              vectors == scalars && first == second);
  std::printf("%s\n", config::optimizer_types().c_str());
}
"""


def changed_sources(folder: Path) -> None:
    """The rooms in `folder`, with the optimizer added."""
    for room in ROOMS:
        shutil.copytree(ROOT / "zeropage" / room, folder / "zeropage" / room)
    for name, edits in HEAVY_BALL.items():
        path = folder / "zeropage" / name
        text = path.read_text()
        for today, added in edits:
            assert text.count(today) == 1, f"{name}: {today!r} is there {text.count(today)} times"
            text = text.replace(today, added)
        path.write_text(text)


@pytest.mark.slow
def test_an_optimizer_needs_the_documented_places_only(tmp_path):
    """Catches a place that CONTRIBUTING.md does not list, and a table, kernel or check that names the optimizers."""
    changed_sources(tmp_path)
    tables = [
        path
        for room in ("base", "config")
        for path in sorted((tmp_path / "zeropage" / room).glob("*.cc"))
        if not path.name.endswith("_test.cc")
    ]
    (tmp_path / "all.cc").write_text("".join(f'#include "{path}"\n' for path in tables) + PROGRAM)
    subprocess.run(
        ["c++", "-std=c++20", "-O0", "-Wall", "-Werror=switch", "-DFMT_HEADER_ONLY", "-DSPDLOG_FMT_EXTERNAL"]
        + ['-DZEROPAGE_VERSION="0"', f"-I{tmp_path}", "all.cc", *KERNELS, "-o", "train"],
        cwd=tmp_path,
        check=True,
        timeout=COMPILE_TIMEOUT_S,
    )
    messages = subprocess.run([tmp_path / "train"], check=True, capture_output=True, text=True, timeout=60).stdout
    # m: 0.5, 0.75, 0.875; 0.25 of each is subtracted from the parameter.
    assert messages.splitlines()[0] == "heavyball 1 0.46875 0.46875 1"
    assert "HeavyBall" in messages.splitlines()[1]


def test_every_optimizer_is_named_in_the_documented_places_only():
    """Catches a file that CONTRIBUTING.md does not list and that has a case for an optimizer. Adagrad and Lion are the
    two that no other rule needs."""
    listed = {"config/config.h", "config/optimizers.cc", "optim/rules.h", "engine/device_update.cc"}
    for kind in ("kAdagrad", "kLion"):
        naming = {
            str(path.relative_to(ROOT / "zeropage"))
            for path in (ROOT / "zeropage").rglob("*")
            if path.suffix in (".cc", ".h", ".cu") and "test" not in path.name and kind in path.read_text()
        }
        assert naming == listed
