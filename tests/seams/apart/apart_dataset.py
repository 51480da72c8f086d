"""A dataset source and an importer that no file of the product knows: the form, the page's import, the scan, the command line."""

import shutil

import pytest

from core.cli.main import main
from core.dataset.sources.scan import scan_dataset
from core.imports.importers import endings, importer_of
from core.record.workspace import PROJECT
from core.settings.check import build
from core.settings.dataset.dataset import DatasetSettings
from core.settings.job import TrainJob
from tabs.dataset.exchange import Exchange
from tabs.train import tab as train
from tests.seams.count import measured
from tests.tabs.work_parts import make_page

STARTER = PROJECT / "models" / "starter" / "images"


@pytest.fixture
def listed(tmp_path):
    images = sorted(STARTER.glob("*.png"))[:3]
    (tmp_path / "fox.lst").write_text("\n".join(map(str, images)))
    return tmp_path / "fox.lst", images


def test_the_source_lists_the_images_in_place_of_folders(listed):
    file, images = listed
    found = scan_dataset(DatasetSettings(folder=str(file), dataset_class="lists"))
    assert not found.problems and [image.path for image in found.images] == images
    assert {image.metadata_caption for image in found.images} == {"a listed fox"}


def test_it_is_offered_in_the_form_and_trains_from_the_command_line(listed, tmp_path):
    file, _ = listed
    page = make_page(tmp_path)
    assert train._lists(page)["dataset.dataset_class"] == [("", [("A list of images", "lists")])]
    words = ["train", "--dataset.folder", str(file), "--dataset.dataset_class", "lists", "--model.base_model"]
    words += ["models/starter", "--dataset.resolution", "64", "--outputs", str(tmp_path / "outputs"), "--check"]
    assert main(words) == 0


def test_the_importer_takes_its_files_on_the_page_and_leaves_others_to_sd_scripts(listed, tmp_path):
    file, _ = listed
    assert endings() == [".toml", ".json", ".lst"]
    assert importer_of("x.LST").name == "lists" and importer_of("x.toml").name == importer_of("x").name == "sd_scripts"
    page = make_page(tmp_path)
    copy = shutil.copy(file, tmp_path / "sent.lst")
    Exchange(page).import_config(str(copy))
    assert page.project.job.dataset.dataset_class == "lists"
    job, _ = importer_of(str(file)).apply(build(TrainJob, {}), str(file))
    assert job.dataset.folder == str(file)


def test_no_file_of_the_product_knows_it():
    assert measured("lists")[1] == []
