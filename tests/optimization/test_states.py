"""The forecast of an optimizer's state equals what the optimizer allocates."""

from collections import Counter

from pytest import approx, mark

from core.settings.optimization.optimizer import OptimizerSettings
from core.settings.optimization.optimizers import catalog
from core.settings.optimization.states import measured_states, state_bytes
from tests.selection import slow_unless
from workshop.optimizer_states import measured, settings_of

ON_CPU = [name for name, entry in catalog().items() if entry.offered and "cpu" in (entry.only_on or ("cpu",))]
QUICK = "AdamW AdamW8bit SOAP Muon CAME AdaFactor Prodigy SGD Lion8bit Automagic Automagic3".split()
# other shapes than those that were measured: a matrix, LoRA pairs, convolutions, vectors
SHAPES = [
    (80, 200),
    (4, 320),
    (320, 4),
    (16, 640),
    (640, 16),
    (56, 40, 3, 3),
    (16, 40, 3, 3),
    (56, 16, 1, 1),
    (320,),
    (320,),
]


def test_each_optimizer_that_runs_on_a_cpu_is_measured():
    assert list(measured_states().keys() - ON_CPU) == list(set(ON_CPU) - measured_states().keys()) == []


@mark.parametrize("name", slow_unless(QUICK.__contains__, ON_CPU))
def test_the_forecast_of_an_optimizers_state_is_within_a_tenth_of_what_it_allocates(name):
    settings = settings_of(catalog()[name])
    off = 0.2 if name.endswith("Alice") else 0.1  # the rank of Alice depends on both sides
    assert state_bytes(settings, Counter(SHAPES)) == approx(measured(settings, SHAPES), rel=off, abs=2048)


@mark.parametrize(
    ("name", "arguments"),
    [
        ("SGD", {"momentum": 0.9}),
        ("AdamW", {"amsgrad": True}),
        ("AdaFactor", {"beta1": 0.9, "relative_step": False}),
        ("SOAP", {"max_precondition_dim": 100}),
        ("AdamW8bit", {"min_8bit_size": 1000}),
    ],
)
def test_arguments_that_change_the_state_are_counted(name, arguments):
    settings = OptimizerSettings(optimizer_type=name, optimizer_args=arguments, learning_rate=1e-3)
    wrong = settings.model_copy(update={"optimizer_args": dict.fromkeys(arguments, "many")})
    assert state_bytes(wrong, Counter(SHAPES)) > 0, "reported by the rules"
    assert state_bytes(settings, Counter(SHAPES)) == approx(measured(settings, SHAPES), rel=0.1)
