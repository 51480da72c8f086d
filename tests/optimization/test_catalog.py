"""Every optimizer of the installed packages: offered when a run that resumes in it equals one that does not."""

import inspect
import json
import subprocess
import sys

import torch
from pytest import approx, fixture, mark, raises

from core.optimization.optimizers import (
    build_optimizer,
    device_problems,
    load_class,
    load_state,
    resolve,
    step_sizes,
)
from core.optimization.seeded import global_state
from core.optimization.signatures import arguments_of
from core.optimization.trial import PAGED_ROWS, TrialNet, run_trial
from core.record import allowed
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from core.settings.optimization.optimizer import OptimizerSettings, optimizer_sentence
from core.settings.optimization.optimizers import (
    FILE,
    SHORT,
    Entry,
    argument_problems,
    catalog,
    data,
    find,
    literal,
    parse_arguments,
    type_problem,
)
from tests.selection import slow_unless
from workshop import optimizer_catalog as written

NAMES_OF_SD_SCRIPTS = (  # reference, section 4.1
    "AdamW AdamW8bit PagedAdamW PagedAdamW8bit PagedAdamW32bit Lion Lion8bit PagedLion8bit SGDNesterov SGDNesterov8bit "
    "DAdaptation DAdaptAdamPreprint DAdaptAdaGrad DAdaptAdam DAdaptAdan DAdaptAdanIP DAdaptLion DAdaptSGD Prodigy AdaFactor "
    "AdamWScheduleFree RAdamScheduleFree SGDScheduleFree"
).split()
PATHS_OF_SD_SCRIPTS = (
    "bitsandbytes.optim.AdEMAMix8bit bitsandbytes.optim.PagedAdEMAMix8bit bitsandbytes.optim.lamb.LAMB pytorch_optimizer.CAME "
    "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree RMSprop Adagrad NAdam RAdam Adam"
).split()
A_HANDFUL = [
    "Automagic",
    "Automagic3",
    "pytorch_optimizer.DASH",
    "pytorch_optimizer.ScheduleFreeRAdam",
    "torch.optim.Adafactor",
]
OFFERED = [name for name, entry in catalog().items() if entry.offered and "cpu" in (entry.only_on or ("cpu",))]
QUICK = [*NAMES_OF_SD_SCRIPTS, *A_HANDFUL]
TRIED = slow_unless(QUICK.__contains__, list(dict.fromkeys([*QUICK, *PATHS_OF_SD_SCRIPTS, *OFFERED])))


def settings_for(entry, name, rate=None):
    adapts = "adapts" in entry.traits
    arguments = dict(written.GIVEN_BY_PERSON.get(entry.path, {}))
    if "relative_step" in entry.arguments:
        arguments["relative_step"] = False
    return OptimizerSettings(optimizer_type=name, learning_rate=1.0 if adapts else 1e-3, optimizer_args=arguments)


@mark.parametrize("name", TRIED)
def test_it_trains_saves_and_resumes_to_the_bit_as_a_job_builds_it(name):
    entry = find(name)
    settings = settings_for(entry, name)
    result = run_trial(
        lambda groups: build_optimizer(settings, groups), settings.learning_rate, same_rate="one_rate" in entry.traits
    )
    assert result.reason == ""
    if "draws" not in entry.traits:
        assert not result.traits or result.traits == ["averages"]
    assert ("averages" in result.traits) == ("averages" in entry.traits)


@mark.slow
def test_the_list_is_what_the_installed_packages_give():
    """In a process of its own: what others loaded and set in this one is no part of it."""
    render = "import sys; from workshop import optimizer_catalog; sys.stdout.write(chr(0) + optimizer_catalog.render())"
    done = subprocess.run(
        [sys.executable, "-c", render], cwd=PROJECT, capture_output=True, encoding="utf-8", check=True
    )
    assert FILE.read_text("utf-8") == done.stdout.rpartition("\0")[2]  # after what optimizers print


def test_the_list_names_every_optimizer_with_its_present_arguments():
    """All but the outcome of the trials, which takes longer."""
    if data()["packages"] != written.versions():
        raise AssertionError("other versions are installed: run python -m workshop.optimizer_catalog")
    outcome = {"reason", "only_on"}
    measured = {"one_rate", "draws", "averages"}

    def bare(item):
        kept = {name: value for name, value in item.items() if name not in outcome}
        return {**kept, "traits": [trait for trait in kept["traits"] if trait not in measured]}

    listed = [bare(item) for item in data()["optimizers"]]
    assert listed == json.loads(json.dumps([bare(item) for item in written.described()]))
    assert data()["schedules"] == json.loads(json.dumps(written.schedules()))


def test_what_is_not_offered_has_its_reason_and_cannot_be_chosen():
    refused = [entry for entry in catalog().values() if not entry.offered]
    assert {"torch.optim.LBFGS", "torch.optim.Muon", "pytorch_optimizer.SAM", "pytorch_optimizer.SophiaH"} <= {
        entry.path for entry in refused
    }
    for entry in refused:
        assert entry.reason in type_problem(entry.name).what
    assert len(refused) < len(catalog()) / 4


@mark.parametrize("name", NAMES_OF_SD_SCRIPTS)
def test_sd_scripts_names_hold_in_any_case(name):
    assert find(name) is find(name.lower()) is find(name.upper())
    assert find(name).path == SHORT[name][0] and find(name).offered
    assert type_problem(name.lower()) is None


def test_names_mean_the_classes_that_sd_scripts_takes():
    assert find("").path == "torch.optim.AdamW"
    assert find("Adafactor").path == "transformers.optimization.Adafactor", "torch's is written torch.optim.Adafactor"
    assert find("torch.optim.Adafactor").path == "torch.optim.Adafactor"
    for name in ("Muon", "CAME", "SOAP"):
        assert find(name).path == find(name.lower()).path == find(f"pytorch_optimizer.{name}").path
    assert find("rmsprop").path == "torch.optim.RMSprop"
    assert find("bitsandbytes.optim.lamb.LAMB").path == "bitsandbytes.optim.LAMB"
    assert load_class(find("bitsandbytes.optim.lamb.LAMB")).__name__ == "LAMB"


def test_each_class_path_means_its_class_with_the_defaults_of_the_class():
    """Also SGD's, whose class SGDNesterov has too, in any case."""
    for item in data()["optimizers"]:
        for path in (item["path"], *item.get("aliases", ())):
            for spelled in (path, path.lower(), path.upper(), f" {path} "):
                entry = find(spelled)
                assert (entry.path, entry.implied) == (item["path"], item.get("implied", {})), spelled
            assert load_class(find(path)) is load_class(Entry(path, path, "")), path
    for entry in catalog().values():
        assert find(entry.name) is find(entry.name.lower()) is find(entry.name.upper()) is entry


@mark.parametrize("name", ["torch.optim.SGD", "torch.optim.sgd.SGD", "SGD", "sgd"])
def test_plain_sgd_has_no_momentum(name):
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer(
        OptimizerSettings(optimizer_type=name), [{"name": "unet", "params": [weight], "lr": 0.1}]
    )
    for _ in range(3):
        weight.grad = torch.tensor([2.0])
        optimizer.step()
    assert weight.item() == approx(1.0 - 3 * 0.1 * 2.0)


def test_a_name_that_does_not_exist_brings_the_nearest():
    assert "Prodigy" in type_problem("Prodgy").fix
    assert "pytorch_optimizer.Tiger" in type_problem("Tiger").fix
    assert "pytorch_optimizer.Tiger" in type_problem("somewhere.Tiger").fix


def test_a_module_of_a_preset_is_not_imported_and_the_owner_can_allow_it(tmp_path, monkeypatch):
    (tmp_path / "mine_optim.py").write_text(
        "import torch\nclass Mine(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=1e-3, push: float = 2.0):\n        super().__init__(params, lr=lr * push)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = type_problem("mine_optim.Mine")
    assert "--allow-module mine_optim" in problem.fix
    with raises(ProblemsError, match="--allow-module mine_optim"):
        resolve("mine_optim.Mine")
    monkeypatch.setattr(allowed, "_by_flag", {"mine_optim"})
    assert type_problem("mine_optim.Mine") is None
    group = {"name": "unet", "params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5}
    own = OptimizerSettings(optimizer_type="mine_optim.Mine", optimizer_args={"push": 3.0})
    optimizer = build_optimizer(own, [group])
    assert type(optimizer).__name__ == "Mine" and optimizer.param_groups[0]["lr"] == 0.5
    with raises(ProblemsError, match="has no argument 'pull'"):
        build_optimizer(own.model_copy(update={"optimizer_args": {"pull": 1}}), [group])


def test_arguments_are_checked_by_name_and_kind():
    known = find("AdamW").arguments

    def said(**given):
        return [(problem.what, problem.fix) for problem in argument_problems(given, known, "AdamW", "here")]

    assert said(weight_decay=0.1, betas=[0.9, 0.95], amsgrad=True, foreach=None) == []
    ((what, fix),) = said(weight_decy=0.1)
    assert "'weight_decy'" in what and "did you mean 'weight_decay'?" in fix
    assert [fix for _, fix in said(weight_decay="much", betas=0.9, amsgrad=1)] == [
        "use a number",
        "use numbers, such as (0.9, 0.999)",
        "use true or false",
    ]
    assert "use numbers" in said(betas=[0.9])[0][1]
    endless = parse_arguments(["weight_decay=1e999", "betas=0.9,1e999"])
    assert [fix[:10] for _, fix in said(**endless)] == ["use a numb", "use number"]
    ((what, _),) = [
        (p.what, p.fix) for p in argument_problems({}, find("pytorch_optimizer.Ranger21").arguments, "Ranger21", "")
    ]
    assert what == "Ranger21 needs the argument 'num_iterations'"


def test_words_of_sd_scripts_become_typed_values():
    given = "weight_decay=0.01 decouple=True beta3=None betas=0.9,0.99 eps=(1e-30,1e-3) name='x' plain=relative k=3 on=false"
    assert parse_arguments(given.split()) == {
        "weight_decay": 0.01,
        "decouple": True,
        "beta3": None,
        "betas": [0.9, 0.99],
        "eps": [1e-30, 1e-3],
        "name": "x",
        "plain": "relative",
        "k": 3,
        "on": False,
    }
    with raises(ValueError, match="form name=value"):
        parse_arguments(["betas"])
    assert literal("__import__('os').system('true')") == "__import__('os').system('true')", "words, never run"


def test_files_record_the_class_and_what_was_given_to_it():
    assert optimizer_sentence(OptimizerSettings()) == "torch.optim.adamw.AdamW()"
    own = OptimizerSettings(optimizer_type="adamw8bit", weight_decay=0.1, optimizer_args={"percentile_clipping": 95})
    assert optimizer_sentence(own) == "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,percentile_clipping=95)"


def test_the_8_bit_ones_of_a_graphics_card_are_said_before_the_start():
    only = [entry.name for entry in catalog().values() if entry.only_on == ("cuda",)]
    assert only == [
        f"bitsandbytes.optim.{name}"
        for name in ("AdEMAMix32bit", "PagedAdEMAMix", "PagedAdEMAMix32bit", "PagedAdEMAMix8bit")
    ]
    (problem,) = device_problems(OptimizerSettings(optimizer_type=only[0]), "cpu")
    assert (problem.code, problem.level) == ("optimizer.other-device", "error") and "cuda" in problem.what
    assert device_problems(OptimizerSettings(optimizer_type=only[0]), "cuda:1") == []
    for device, codes in (("cpu", []), ("cuda", []), ("mps", ["optimizer.other-device"])):
        found = device_problems(OptimizerSettings(optimizer_type="AdamW8bit"), device)
        assert [problem.code for problem in found] == codes


def test_a_package_that_is_not_installed_is_told_before_the_start(monkeypatch):
    monkeypatch.setattr(
        "core.settings.optimization.optimizers.find_spec", lambda name: None if name == "bitsandbytes" else name
    )
    (problem,) = device_problems(OptimizerSettings(optimizer_type="AdamW8bit"), "cpu")
    assert problem.code == "optimizer.other-device" and "bitsandbytes" in problem.what


def test_the_large_weights_of_a_trial_page_their_state():
    assert TrialNet(rows=PAGED_ROWS).big.numel() >= 1e5 > TrialNet().big.numel()
    assert device_problems(OptimizerSettings(optimizer_type="AdamW8bit"), "cpu") == []


@fixture
def kron():
    net = TrialNet()
    settings = OptimizerSettings(optimizer_type="pytorch_optimizer.DASH", learning_rate=1e-3)
    return net, settings


def test_torch_orders_products_of_several_tensors_by_their_size():
    """Kron multiplies a gradient by two large matrices, whose own product would have as many values as a hundred gradients squared."""
    assert torch.backends.opt_einsum.is_available()


def test_an_optimizer_that_draws_leaves_the_process_its_random_numbers_and_draws_by_seed(kron):
    ends = []
    for seed in (1, 1, 2):
        net = TrialNet()
        optimizer = build_optimizer(kron[1], net.named_groups(1e-3, same=False), seed=seed)
        for step in range(3):
            net.loss(step).backward()
            before = global_state()
            optimizer.step()
            assert global_state() == before
            optimizer.zero_grad()
        ends.append([weight.detach().clone() for weight in net.parameters])
    same, other = (all(torch.equal(a, b) for a, b in zip(ends[0], ends[i], strict=True)) for i in (1, 2))
    assert same and not other


def test_states_in_a_short_number_format_come_back_as_they_were_saved():
    """torch casts them to the weights' format on loading; ProdigyPlus keeps some in bfloat16 and computes in it."""
    net = TrialNet()
    settings = OptimizerSettings(optimizer_type="prodigyplus.ProdigyPlusScheduleFree", learning_rate=1.0)
    optimizer = build_optimizer(settings, net.named_groups(1.0, same=True))
    net.train(optimizer, range(2))
    state = optimizer.state_dict()
    resumed = build_optimizer(settings, net.named_groups(1.0, same=True))
    load_state(resumed, state)
    kinds = [
        {name: value.dtype for name, value in each.state[net.big].items() if isinstance(value, torch.Tensor)}
        for each in (optimizer, resumed)
    ]
    assert kinds[0] == kinds[1] and torch.bfloat16 in kinds[0].values()


@mark.parametrize(
    ("name", "argument", "state"),
    [("Prodigy", "d_coef", "d"), ("AdamWScheduleFree", "warmup_steps", "k"), ("SGD", "momentum", "lr")],
)
def test_a_loaded_state_keeps_the_arguments_of_this_runs_settings(name, argument, state):
    def made(value):
        settings = OptimizerSettings(optimizer_type=name, learning_rate=1.0, optimizer_args={argument: value})
        net = TrialNet()
        return net, build_optimizer(settings, net.named_groups(1.0, same=True))

    net, optimizer = made(1)
    net.train(optimizer, range(2))
    _, resumed = made(3)
    load_state(resumed, optimizer.state_dict())
    assert [group[argument] for group in resumed.param_groups] == [3, 3]
    assert [group[state] for group in resumed.param_groups] == [group[state] for group in optimizer.param_groups]


def test_a_loaded_state_keeps_the_cosine_of_this_runs_settings():
    def made(**arguments):
        settings = OptimizerSettings(optimizer_type="pytorch_optimizer.StableSPAM", optimizer_args=arguments)
        net = TrialNet()
        return net, build_optimizer(settings, net.named_groups(1.0, same=True))

    net, optimizer = made(t_max=100, eta_min=0.1, theta=0.5)
    net.train(optimizer, range(2))
    _, resumed = made(t_max=50, eta_min=0.7, theta=0.9)
    load_state(resumed, optimizer.state_dict())
    cosine = resumed.warmup.cosine_stepper
    assert (cosine.T_max, cosine.eta_min, resumed.theta) == (51, 0.7, 0.9)
    assert cosine.last_epoch == optimizer.warmup.cosine_stepper.last_epoch


def test_the_step_size_that_prodigy_found_is_told():
    net = TrialNet()
    optimizer = build_optimizer(
        OptimizerSettings(optimizer_type="Prodigy", learning_rate=1.0), net.named_groups(1.0, same=True)
    )
    net.train(optimizer, range(3))
    sizes = step_sizes(optimizer)
    assert sizes == {"group0": optimizer.param_groups[0]["d"], "group1": optimizer.param_groups[1]["d"]}
    adamw = build_optimizer(OptimizerSettings(), net.named_groups(1.0, same=True))
    assert step_sizes(adamw) == {}


def test_signatures_are_read_with_kinds_and_defaults():
    class Example(torch.optim.SGD):
        def __init__(
            self, params, lr=1, *, betas=(0.9, 0.99), warm: int = 3, on=False, scale: float | None = None, **rest
        ):
            pass

    found = {argument.name: (argument.kind, argument.default, argument.optional) for argument in arguments_of(Example)}
    assert found == {
        "betas": ("numbers", [0.9, 0.99], False),
        "warm": ("int", 3, False),
        "on": ("bool", False, False),
        "scale": ("number", None, True),
    }
    assert "params" in inspect.signature(Example).parameters


def test_the_list_is_read_without_torch():
    import subprocess
    import sys

    code = "import sys, core.settings.optimization.optimizers as o; assert o.catalog() and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_name_of_the_list_gives_the_entry_it_stands_beside():
    entries = catalog()
    assert all(name == entry.name for name, entry in entries.items())
    wrong = [name for name, entry in entries.items() if find(name) is not entry]
    assert wrong == []
