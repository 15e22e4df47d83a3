"""What is told of data and networks before the work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raypurify import models
from raypurify.classifiers import a_net
from raypurify.data import DataError, Source, View, check_ids, labels_of, open_source, read_rows, reading, shape_of
from raypurify.evaluation import preflight
from raypurify.images import encode_png
from raypurify.storage import checkpoints

SHAPE = (28, 28, 1)


def class_folders(root: Path, names: tuple[str, ...], each: int = 4) -> Source:
    for name in names:
        for number in range(each):
            path = root / "test" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((28, 28), ord(name[0]), np.uint8)).save(path)
    return open_source(str(root), split="test")


def table(folder: Path, labels: list[Any], **columns: list[Any]) -> Source:
    encoded = [encode_png(np.zeros((4, 4, 1), np.uint8))] * len(labels)
    pq.write_table(pa.table({"image": encoded, "label": labels, **columns}), folder / "train.parquet", row_group_size=7)
    return open_source(str(folder), split="train")


def classifier(folder: Path, name: str = "a", **config: Any) -> models.Model:
    classes = len(config.get("class_names") or range(10))
    network = a_net.build(classes=classes)
    params = {"classes": classes}
    checkpoints.save(
        str(folder / name), {"kind": "classifier", "plugin": "a_net", "params": params, **config}, network.state_dict()
    )
    return models.load("classifier", str(folder / name))


def test_classes_are_matched_by_their_names(tmp_path: Path) -> None:
    known = classifier(tmp_path, class_names=["bird", "cat", "dog"])
    source = class_folders(tmp_path / "data", ("cat", "dog"))
    assert sorted(labels_of(source).tolist()) == [0] * 4 + [1] * 4
    matched = preflight.matched(source, [known])
    assert matched.classes == ("bird", "cat", "dog")
    rows = read_rows(matched.shards[0], 0, 8)
    assert [matched.classes[label] for label in rows.labels] == [name.split("/")[1] for name in rows.ids]
    assert labels_of(matched).tolist() == rows.labels.tolist()
    preflight.check_network(known, matched, rows.labels, SHAPE)
    assert preflight.missing_classes(matched, rows.labels, "evaluated") == ["no evaluated image of class bird"]


def test_numbers_are_matched_with_the_folders_that_are_named_by_them(tmp_path: Path) -> None:
    known = classifier(tmp_path, class_names=sorted(map(str, range(12))))
    matched = preflight.matched(table(tmp_path, [*range(12), 2]), [known])
    assert labels_of(matched).tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 4]
    words = preflight.matched(table(tmp_path, [0, 1]), [classifier(tmp_path, class_names=["cat", "dog"])])
    assert labels_of(words).tolist() == [0, 1]


def test_classes_that_do_not_match_are_refused_with_both_lists(tmp_path: Path) -> None:
    known = classifier(tmp_path, class_names=["bird", "cat", "dog"])
    source = class_folders(tmp_path / "data", ("cat", "emu"))
    with pytest.raises(ValueError, match=r"cat, emu; a was trained on bird, cat, dog, and does not know emu"):
        preflight.matched(source, [known])
    other = classifier(tmp_path, "b", class_names=["cat", "bird", "dog"])
    with pytest.raises(ValueError, match="differently: a has bird, cat, dog, b has cat, bird, dog"):
        preflight.matched(source, [known, other])


def test_a_name_that_a_classifier_has_for_two_classes_is_refused(tmp_path: Path) -> None:
    known = classifier(tmp_path, class_names=["crane", "drake", "crane"])
    source = class_folders(tmp_path / "data", ("crane", "drake"))
    with pytest.raises(ValueError, match="data: a knows several classes of the same name: crane"):
        preflight.matched(source, [known])
    alike = replace(source, classes=("crane", "drake", "crane"))
    assert preflight.matched(alike, [known]) == alike
    assert preflight.matched(class_folders(tmp_path / "other", ("drake",)), [known]).classes == alike.classes


def test_names_of_classes_stay_on_one_line(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "data", ("cat\nerror: none", "d" * 200))
    labels = labels_of(source)
    assert preflight.described(source, labels) == (
        f"data: data, test: 8 images of 2 classes: cat\\nerror: none 4, {'d' * 32}... 4"
    )
    assert preflight.missing_classes(source, labels[labels == 1], "evaluated") == [
        "no evaluated image of class cat\\nerror: none"
    ]
    Image.new("L", (30, 28)).save(tmp_path / "data" / "test" / "cat\nerror: none" / "9.png")
    line, _ = preflight.shapes_told(open_source(str(tmp_path / "data"), split="test"), []) or ("", [])
    assert "test/cat\\nerror: none/9.png 30x28 grey" in line


def test_without_names_the_number_of_classes_counts(tmp_path: Path) -> None:
    old = classifier(tmp_path)
    source = class_folders(tmp_path / "data", ("cat", "dog"))
    assert preflight.matched(source, [old]) == source
    with pytest.raises(ValueError, match="a knows 10 classes, and data has 2: cat, dog"):
        preflight.check_network(old, source, labels_of(source), SHAPE)
    many = table(tmp_path, [*range(10), 11])
    with pytest.raises(ValueError, match=r"knows 10 classes, and the labels of .* go up to 11"):
        preflight.check_network(old, many, labels_of(many), SHAPE)
    few = table(tmp_path, [0, 1, 2])
    preflight.check_network(old, few, labels_of(few), SHAPE)


def test_networks_that_do_not_take_the_images_are_named(tmp_path: Path) -> None:
    source = table(tmp_path, [0, 1, 2])
    with pytest.raises(ValueError, match=r"a does not take images of \(H, W, C\) = \(28, 28, 3\)"):
        preflight.check_network(classifier(tmp_path), source, labels_of(source), (28, 28, 3))
    with pytest.raises(ValueError, match=r"flat: expected logits \(N, classes\), got the shape \(784,\)"):
        preflight.tried(torch.nn.Flatten(0), "classifier", "flat", SHAPE)
    with pytest.raises(ValueError, match=r"half: expected images .* got the shape \(1, 1, 14, 14\)"):
        preflight.tried(torch.nn.MaxPool2d(2), "purifier", "half", SHAPE)
    with pytest.raises(ValueError, match="pair: expected a tensor, got a tuple"):
        preflight.tried(torch.nn.MaxPool2d(2, return_indices=True), "classifier", "pair", SHAPE)


def test_a_classifier_whose_logits_are_not_finite_is_warned_of(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "data", ("cat", "dog"))
    sound = classifier(tmp_path, class_names=["cat", "dog"])
    state = {name: torch.full_like(value, torch.nan) for name, value in (sound.state or {}).items()}
    broken = replace(sound, state=state)
    warnings = preflight.checked("data", source, [sound, broken], job="an evaluation", done="evaluated")[2]
    assert [text.partition(". ")[0] for text in warnings] == ["a: its logits of a black image are not finite"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3] * 9, "all 9 images are of one class, 3; expected at least two"),
        (
            [row % 10 * 1000 for row in range(40)],
            r"go up to 9000, but only 10 different ones occur \(0, 1000, .* 0 to 9",
        ),
    ],
)
def test_labels_that_cannot_be_learned(tmp_path: Path, labels: list[int], message: str) -> None:
    source = table(tmp_path, labels)
    with pytest.raises(DataError, match=message):
        preflight.check_trainable(source, labels_of(source))


def test_one_folder_too_high(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "test", ("cat", "dog"))  # .../test/test/cat
    source = open_source(str(tmp_path), split="test")
    with pytest.raises(DataError, match=r"of one class, test; .* give the folder that holds the class folders"):
        preflight.check_trainable(source, labels_of(source))


@pytest.mark.parametrize(("label", "message"), [(None, "row 8: the label is null"), (-2, "row 8: label -2 is out of")])
def test_wrong_labels_are_found_without_the_images(tmp_path: Path, label: int | None, message: str) -> None:
    source = table(tmp_path, [0, 1] * 4 + [label, 1])
    with pytest.raises(DataError, match=message):
        labels_of(source)


def test_ids_that_are_there_twice(tmp_path: Path) -> None:
    check_ids(table(tmp_path, [0] * 20, id=[f"a{row}" for row in range(20)]))
    with pytest.raises(DataError, match="2 rows have the id 'a3'"):
        check_ids(table(tmp_path, [0] * 20, id=[f"a{3 if row == 17 else row}" for row in range(20)]))
    with pytest.raises(DataError, match="'id' is null in 1 rows"):
        check_ids(table(tmp_path, [0] * 3, id=["a", None, "b"]))


def test_the_line_on_the_data(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "d", ("cat", "dog"))
    assert preflight.described(source, labels_of(source)) == "data: d, test: 8 images of 2 classes: cat 4, dog 4"
    digits = open_source("digits", split="test")
    assert preflight.described(digits, labels_of(digits)).endswith("297 images of 10 classes, 22 to 42 each")


def test_a_model_that_was_trained_on_the_images_is_named(tmp_path: Path) -> None:
    train, test = (open_source("digits", split=split) for split in ("train", "test"))
    origin = {"files": train.origin.files, "rows": train.origin.rows, "split": "train", "split_by": "files"}
    model = classifier(tmp_path, trained_on=origin)
    assert preflight.trained_on(test, [model]) == []
    assert "a was trained on images that it is evaluated on" in preflight.trained_on(train, [model])[0]


def test_the_shape_is_that_of_the_first_image_that_can_be_decoded(tmp_path: Path) -> None:
    encoded = [b"no image", None, encode_png(np.zeros((4, 5, 1), np.uint8))]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": encoded, "label": [0, 1, 1]}), path)
    assert shape_of(open_source(str(path), split="train")) == (4, 5, 1)
    pq.write_table(pa.table({"image": encoded[:2], "label": [0, 1]}), path)
    with pytest.raises(DataError, match="none of the first 2 images can be decoded"):
        shape_of(open_source(str(path), split="train"))


def mixed_folder(root: Path, sizes: dict[str, tuple[int, ...]], split: str = "test") -> Source:
    """Images of 40x40, but for some; (height, width), or (height, width, 3)."""
    for number in range(40):
        path = root / split / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(sizes.get(path.name, (40, 40)), number, np.uint8)).save(path)
    return open_source(str(root), split=split)  # type: ignore[arg-type]


def test_images_of_other_sizes_are_told_by_their_names_before_the_work(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "photos", {"3.png": (60, 50), "8.png": (30, 48), "9.png": (60, 50)})
    network = classifier(tmp_path, class_names=["cat", "dog"])
    with pytest.raises(DataError) as refused:
        preflight.checked("photos", source, [network], job="an evaluation", done="evaluated")
    line = str(refused.value)
    assert line.startswith("photos: 3 of 40 images are not 40x40 grey: ")
    assert all(told in line for told in ("test/dog/3.png 50x60 grey", "test/cat/8.png 48x30 grey", "dog/9.png 50x60"))
    assert ". Give --resize 30 --crop 30. As they are, a does not take images of (H, W, C) = (40, 40, 1): " in line
    trained = classifier(tmp_path, "b", view={"resize": 32, "crop": 28}, class_names=["cat", "dog"])
    found = preflight.shapes_told(source, [network, trained])
    assert found is not None
    assert found[0].endswith("Give --resize 32 --crop 28")
    shown = open_source(str(tmp_path / "photos"), split="test", view=View(resize=32, crop=28))
    assert preflight.shapes_told(shown, [network]) is None
    source, about, warnings = preflight.checked("photos", shown, [network, trained], job="an evaluation", done="e")
    assert (about, warnings) == ("data: photos (resize 32, crop 28), test: 40 images of 2 classes: cat 20, dog 20", [])


def test_networks_that_take_all_sizes_get_them_with_a_warning(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "photos", {"3.png": (60, 50)})
    any_size = models.load("purifier", "identity")
    _, _, warnings = preflight.checked("photos", source, [any_size], job="an evaluation", done="evaluated")
    assert warnings == [
        "photos: 1 of 40 images are not 40x40 grey: test/dog/3.png 50x60 grey. Give --resize 40 --crop 40"
    ]


def test_grey_images_among_colours_are_shown_in_colour(tmp_path: Path) -> None:
    stored = mixed_folder(tmp_path / "photos", {f"{number}.png": (40, 40, 3) for number in range(3, 40)})
    shown = preflight.as_trained(stored, View(as_stored=True), [])
    rows = read_rows(shown.shards[0], 0, 40)
    assert not rows.rejects
    assert np.stack(list(rows.images)).shape == (40, 40, 40, 3)
    grey = rows.ids.index("test/cat/2.png")
    assert (rows.images[grey] == 2).all()
    assert preflight.shapes_told(shown, []) is None


def test_a_grey_image_beyond_those_whose_headers_are_read_is_shown_in_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "HEADERS", 10)
    stored = mixed_folder(tmp_path / "photos", {f"{number}.png": (40, 40, 3) for number in range(40)})
    last = stored.shards[0].extra["keys"][39]
    Image.new("L", (40, 40), 7).save(tmp_path / "photos" / last)
    rows = read_rows(preflight.as_trained(stored, View(), []).shards[0], 0, 40)
    assert rows.images[39].shape == (40, 40, 3)
    assert (rows.images[39] == 7).all()


def test_a_few_colour_images_among_grey_ones_are_told(tmp_path: Path) -> None:
    stored = mixed_folder(tmp_path / "photos", {f"{number}.png": (40, 40, 3) for number in range(3)})
    found = preflight.shapes_told(preflight.as_trained(stored, View(), []), [])
    assert found is not None
    assert found[0].startswith("photos: 3 of 40 images are not 40x40 grey: test/")
    assert found[0].endswith("40x40 RGB. Make them all grey, or all RGB")


def test_classes_are_known_by_each_of_their_names(tmp_path: Path) -> None:
    known = classifier(tmp_path, class_names=["crane, bird", "house cat, Felis catus, n021", "crane, machine", "drake"])
    source = class_folders(tmp_path / "data", ("Drake", "house_cat"))
    synsets = classifier(tmp_path, class_names=["tabby, n02123045", "boxer, n02108089"])
    for given in (("n02108089-boxer", "n02123045-tabby"), ("n02108089", "n02123045_tabby, tabby cat")):
        assert preflight.matched(replace(source, classes=given), [synsets]).shards[0].renumbered == (1, 0)
    matched = preflight.matched(source, [known])
    assert set(labels_of(matched).tolist()) == {3, 1}
    assert matched.classes == ("crane, bird", "house_cat", "crane, machine", "Drake")
    assert preflight.matched(replace(source, classes=("n021", "crane, bird")), [known]).shards[0].renumbered == (1, 0)
    with pytest.raises(ValueError, match=r"the same name: crane\. .* by another of their names: crane, bird; crane"):
        preflight.matched(replace(source, classes=("crane", "n021")), [known])
    two = classifier(tmp_path, "two", class_names=["a", "A"])
    assert preflight.matched(replace(source, classes=("A", "a")), [two]).shards[0].renumbered == (1, 0)
    alike = replace(source, classes=("bird", "n021", "crane", "drake"))
    assert preflight.matched(alike, [known]) is alike


def test_folders_that_are_named_by_numbers_have_these_numbers(tmp_path: Path) -> None:
    known = classifier(tmp_path, class_names=["bird", "cat", "dog"])
    source = class_folders(tmp_path / "data", ("0", "2"))
    matched = preflight.matched(source, [known])
    assert set(labels_of(matched).tolist()) == {0, 2}
    assert matched.classes == ("bird", "cat", "dog")
    for wrong in (("0", "3"), ("0", "cat")):
        with pytest.raises(ValueError, match="does not know"):
            preflight.matched(replace(source, classes=wrong), [known])


def test_a_classifier_of_fewer_names_than_classes_is_told(tmp_path: Path) -> None:
    known = classifier(tmp_path, class_names=["cat", "dog"])
    source = class_folders(tmp_path / "data", ("cat", "dog"))
    wrong = replace(known, config={"class_names": ["cat"]})
    with pytest.raises(ValueError, match="a: class_names has 1 names, and it tells 2 classes apart"):
        preflight.check_network(wrong, source, labels_of(source), SHAPE)


def test_files_that_are_no_images_are_told(tmp_path: Path) -> None:
    mixed_folder(tmp_path / "photos", {})
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/notes"):
        (tmp_path / "photos/test" / name).write_bytes(b"")
    source = open_source(str(tmp_path / "photos"), split="test")
    told = preflight.described(source, labels_of(source))
    assert told.endswith(". Left alone, being no images by their names: 2 .heic, 1 without an extension")


def test_of_several_views_each_is_told_with_its_classifier_and_a_purifier_s_is_not(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "photos", {"3.png": (60, 50)})
    a, b = (classifier(tmp_path, name, view={"resize": 36, "crop": side}) for name, side in (("a", 28), ("b", 32)))
    found = preflight.shapes_told(source, [replace(a, kind="purifier", config={"view": {"crop": 20}}), a, b])
    assert found is not None
    assert found[0].endswith("Give --resize 36 --crop 28 (a) or --resize 36 --crop 32 (b)")


def test_a_line_on_many_sizes_and_long_names_is_short(tmp_path: Path) -> None:
    sizes = {f"{number}.png": (40 + number, 40) for number in range(40)}
    source = mixed_folder(tmp_path / ("n" * 30) / ("m" * 40), sizes)
    found = preflight.shapes_told(source, [])
    assert found is not None
    assert " and more. " in found[0]
    assert len(found[0]) < 260


def test_a_view_unlike_that_of_a_training_is_told(tmp_path: Path) -> None:
    mixed_folder(tmp_path / "photos", {})
    names = {"class_names": ["cat", "dog"], "image_shape": [28, 28, 1], "view": {"resize": 32, "crop": 28}}
    network = classifier(tmp_path, **names)

    def checked(view: View) -> list[str]:
        source = open_source(str(tmp_path / "photos"), split="test", view=view)
        return preflight.checked("photos", source, [network], job="an evaluation", done="evaluated")[2]

    assert checked(View(resize=32, crop=28)) == []
    assert checked(View(crop=28)) == ["a was trained with --resize 32 --crop 28; here it has --crop 28"]
    purifiers = [
        replace(models.load("purifier", "identity"), config={"view": view, "image_shape": [28, 28, 1]})
        for view in ({"crop": 20}, {"resize": 30, "crop": 20})
    ]
    source = open_source(str(tmp_path / "photos"), split="test", view=View(resize=32, crop=28))
    found = preflight.checked("photos", source, [network, *purifiers], job="an evaluation", done="evaluated")[2]
    assert found == ["identity was trained with --resize 30 --crop 20; here it has --resize 32 --crop 28"]
    with pytest.raises(ValueError, match=r"it was trained on \(28, 28, 1\), by --resize 32 --crop 28$"):
        checked(View())
