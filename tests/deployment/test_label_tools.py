"""Identities out to labelling tools and corrected back: round trips, the tools' own packages, and bad files.

The packages are not requirements of any layer: a test of one is skipped where it is not installed."""
import copy
import csv
import json
import os
import re
import shutil
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from upl_reid.cli import main
from upl_reid.core import ConfigError, DataError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.own_crops import as_domain, list_images
from upl_reid.deployment import label_tools as tools
from upl_reid.deployment.label_tools import Crop, read_crops, read_tasks, TOOLS, write_labels, write_tasks

PEOPLE = ["person 2", "person 10", "", "佐藤, 花子", '<O\'Neil> & "Co"', "unknown"]
OUT = dict(zip(TOOLS, ("tasks.json", "tasks.xml", "fiftyone", "market")))


@pytest.fixture
def home(tmp_path):
    "Twenty-four pictures of two cameras with hostile names, and the table that `identities` would write."
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        path = tmp_path/"crops"/("door, left" if i % 2 else "庭 %20&")/f"p {i}#é.{'png' if i % 5 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 16 + i, 3), np.uint8)).save(path)
        who = PEOPLE[i//2 % 6]
        sure = "" if who in ("", "unknown") else ".75"
        rows.append([path.relative_to(tmp_path), path.parent.name, f"t{i//4}", who, sure])
    with open(tmp_path/"who.csv", "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([["path", "camera", "track", "identity", "confidence"], *rows])
    return tmp_path


def corrected_in(tool, out, change, gone):
    "Edit a tool's file as the tool would: {path: name}, and a path that is removed."
    if tool == "label-studio":
        tasks = json.loads(out.read_text())
        for n, task in enumerate(tasks):
            task |= dict(id=n + 1, annotations=[])
            if (name := change.get(task["data"]["path"])) is not None:
                listed = name in json.dumps(tasks[0]) or name == "unknown"
                kind = ("identity", "choices", "choices") if listed else ("new_identity", "textarea", "text")
                answer = dict(from_name=kind[0], to_name="image", type=kind[1], value={kind[2]: [name]})
                task["annotations"] = [dict(id=1, was_cancelled=False, result=[answer])]
        out.write_text(json.dumps([t for t in tasks if t["data"]["path"] != gone]))
    elif tool == "cvat":
        tree = ElementTree.parse(out)
        for image in tree.getroot().findall("image"):
            path = next((p for p in [*change, gone] if p.endswith(image.get("name"))), None)
            if path == gone: tree.getroot().remove(image)
            elif path: image.find("tag/attribute").text = change[path]
        tree.write(out, encoding="utf-8", xml_declaration=True)
    elif tool == "fiftyone":
        data, labels = (json.loads((out/n).read_text()) for n in ("data.json", "labels.json"))
        for key, path in list(data.items()):
            if path == gone: del data[key], labels["labels"][key]
            elif path in change:
                if change[path] not in labels["classes"]: labels["classes"].append(change[path])
                labels["labels"][key] = None if change[path] == "unknown" else labels["classes"].index(change[path])
        (out/"data.json").write_text(json.dumps(data))
        (out/"labels.json").write_text(json.dumps(labels))
    else:
        crops = read_crops(out.parent/"who.csv")
        numbers = {name: i for i, name in enumerate(tools.crop_identities(crops), 1)} | {"unknown": -1, "Zoe": 900}
        for row, crop in enumerate(crops, 1):
            [file] = (out/"bounding_box_train").glob(f"*_{row:06d}_00.*")
            if crop.path == gone: file.unlink()
            elif crop.path in change:
                number = numbers[change[crop.path]]
                file.rename(file.with_name(re.sub(r"^(-1|\d+)", f"{number:04d}" if number > 0 else "-1", file.name)))


@pytest.mark.parametrize("tool", TOOLS)
def test_corrections_come_back_as_a_table_that_the_commands_read(home, tool, capsys):
    out, crops = home/OUT[tool], read_crops(home/"who.csv")
    assert main(["tasks", str(home/"who.csv"), str(out), "--tool", tool]) == 0
    back = read_tasks(out, crops)
    assert back == {c.path: c.identity for c in crops}                   # nothing is lost on the way
    new = {0: "佐藤, 花子", 1: "Zoe", 5: '<O\'Neil> & "Co"', 7: "unknown"}
    change = {crops[i].path: name for i, name in new.items()}
    gone = crops[23].path
    corrected_in(tool, out, change, gone)
    wanted = {c.path: change.get(c.path, c.identity).replace("unknown", "") for c in crops if c.path != gone}
    if tool == "market1501": wanted[crops[1].path] = "person 11"         # numbers have no names: a new one
    capsys.readouterr()
    assert main(["labels", str(out), str(home/"who.csv"), str(home/"labels.csv"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["crops"], facts["left_out"]) == (23, 1)
    assert facts["changed"] == sum(wanted[c.path] != c.identity for c in crops if c.path in wanted)
    images = list_images(home/"labels.csv")
    names = {str(p): name or "" for p, name in zip(images.path, images.person)}
    assert names == wanted
    assert {str(p): (c, t) for p, c, t in zip(images.path, images.camid, images.track)} == {
        c.path: (c.camera, c.track) for c in crops if c.path in wanted}
    domain = as_domain(images)                                          # what adapt and pretrain use
    assert len(domain.train) == 23 and len(set(domain.train.pids.tolist()) - {-1}) == facts["identities"]


def test_a_model_is_measured_with_corrected_labels(home, saved, capsys):
    crops = read_crops(home/"who.csv")
    write_tasks(crops, home/"tasks.json", "label-studio")
    given = "labels", home/"tasks.json", home/"who.csv", home/"labels.csv", "--split"
    assert main([*map(str, given)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(saved), str(home/"labels.csv"), "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    people = {}
    for c in crops: people.setdefault(c.identity, set()).add(c.camera)
    assert facts["queries"] == sum(len(cameras) for who, cameras in people.items() if who and len(cameras) > 1)
    assert facts["without_pid"] == sum(not c.identity for c in crops) and facts["gallery"] == 24 - facts["without_pid"]
    assert main([*map(str, given)]) == 0                                # its own table may be replaced
    (home/"labels.csv").write_text("my,own\n")
    assert main([*map(str, given)]) == 1 and (home/"labels.csv").read_text() == "my,own\n"
    for row in (f"{home/'else.jpg'},cam1,,train,,", f"{crops[0].path},cam1,,train,2026-05-31T08:00:00,"):
        own = f"path,camid,pid,split,time,track\n{row}\n"               # a table of one's own, with the same columns
        (home/"labels.csv").write_text(own)
        assert main([*map(str, given)]) == 1 and (home/"labels.csv").read_text() == own


def test_queries_against_a_loop():
    rng = np.random.default_rng(1)
    crops = [Crop(f"/{i}.jpg", f"c{rng.integers(3)}", ["", "a", "b", "c"][rng.integers(4)]) for i in range(40)]
    wanted = []
    for i, c in enumerate(crops):
        others = [d for d in crops if d.identity == c.identity and d.camera != c.camera]
        before = [d for d in crops[:i] if (d.identity, d.camera) == (c.identity, c.camera)]
        if c.identity and others and not before: wanted.append(c)
    assert tools.queries(crops) == wanted and wanted


def test_the_market_folder_is_a_benchmark(home):
    crops = read_crops(home/"who.csv")
    write_tasks(crops, home/"market", "market1501")
    with pytest.warns(UserWarning, match="8 junk images .identity -1. of .*bounding_box_train are left out"):
        domain = load_domain("market1501", home/"market")
    names = tools.crop_identities(crops)
    assert len(domain.gallery) == 24 and len(domain.query) == len(tools.queries(crops))
    got = sorted((int(p.stem.split("_")[2]) - 1, pid, cam) for p, pid, cam in
                 zip(domain.train.paths, domain.train.pids.tolist(), domain.train.camids.tolist()))
    cameras = sorted({c.camera for c in crops}, key=tools.natural_key)
    assert got == [(i, names.index(c.identity) + 1, cameras.index(c.camera)) for i, c in enumerate(crops) if c.identity]
    for p in domain.train.paths: assert p.read_bytes() == open(crops[int(p.stem.split("_")[2]) - 1].path, "rb").read()


def test_addresses_lead_to_the_pictures(home):
    for task, crop in zip(map(tools.label_studio_task, read_crops(home/"who.csv")), read_crops(home/"who.csv")):
        assert task["data"]["image"].isascii() and " " not in task["data"]["image"] and "&" not in task["data"]["image"]
        assert "/" + unquote(task["data"]["image"].removeprefix("/data/local-files/?d=")) == crop.path
    assert tools.label_studio_task(Crop("/a/b.jpg"), "https://cdn/")["data"]["image"] == "https://cdn/a/b.jpg"


def test_annotators(home):
    crops = read_crops(home/"who.csv")[:4]
    write_tasks(crops, home/"tasks.json", "label-studio")
    tasks = json.loads((home/"tasks.json").read_text())
    def says(name, **more):
        answer = dict(from_name="identity", to_name="image", type="choices", value=dict(choices=[name]))
        return dict(result=[answer], **more)
    tasks[0]["annotations"] = [says("person 10"), says("person 10")]
    tasks[1]["annotations"] = [says("person 10"), says("person 2")]                  # they differ: unknown
    tasks[2]["annotations"] = [says("person 2", was_cancelled=True)]                 # skipped: as before
    tasks[3]["annotations"] = [dict(result=[])]                                      # an empty one: unknown
    (home/"tasks.json").write_text(json.dumps(tasks))
    words = rf"annotators differ in 1 of 4 tasks, first {re.escape(crops[1].path)}; these crops are unknown"
    with pytest.warns(UserWarning, match=words):
        assert list(read_tasks(home/"tasks.json", crops).values()) == ["person 10", "", "person 10", ""]
    with pytest.warns(UserWarning, match="annotators differ in 1 of 4 tasks"):
        assert main(["labels", str(home/"tasks.json"), str(home/"who.csv"), str(home/"labels.csv")]) == 0
    tasks[1]["annotations"] = [says("person 10"), says("unknown")]
    tasks[2]["annotations"] = [says("person 2"), dict(result=[])]                    # one of them says nothing
    (home/"tasks.json").write_text(json.dumps(tasks))
    with pytest.warns(UserWarning, match="annotators differ in 1 of 4 tasks"):
        assert list(read_tasks(home/"tasks.json", crops).values()) == ["person 10", "", "person 2", ""]


@pytest.mark.parametrize("tool", ["label-studio", "cvat", "fiftyone"])
def test_unknown_in_any_case_is_nobody(home, tool):
    crops = read_crops(home/"who.csv")
    out = write_tasks(crops, home/OUT[tool], tool)
    change = dict(zip((c.path for c in crops), ("Unknown", " UNKNOWN ", "Zoe")))
    corrected_in(tool, out, change, "")
    assert [read_tasks(out, crops)[path] for path in change] == ["", "", "Zoe"]


@pytest.mark.parametrize("tool, name", [("label-studio", "T.JSON"), ("cvat", "T.XML")])
def test_a_suffix_in_upper_case_is_the_same(home, tool, name):
    crops = read_crops(home/"who.csv")
    usual, upper = (write_tasks(crops, home/n, tool) for n in (OUT[tool], name))
    change = dict(zip((c.path for c in crops), ("Zoe", "Bob")))
    for out in (usual, upper): corrected_in(tool, out, change, "")
    assert read_tasks(upper, crops) == read_tasks(usual, crops)
    assert [read_tasks(upper, crops)[path] for path in change] == ["Zoe", "Bob"]


def test_a_market_folder_tells_of_unknown_cameras_and_without_queries(home):
    crops = read_crops(home/"who.csv")
    for i, cameras in enumerate((["cam1"]*24, [""]*24, [""]*5 + ["cam1"]*19)):
        with open(home/"part.csv", "w", encoding="utf-8", newline="") as f:
            csv.writer(f).writerows([("path", "camera", "identity"),
                                     *((c.path, camera, c.identity) for c, camera in zip(crops, cameras))])
        with pytest.warns(UserWarning) as told:
            assert main(["tasks", str(home/"part.csv"), str(home/f"m{i}"), "--tool", "market1501"]) == 0
        text, unknown = "\n".join(str(w.message) for w in told), cameras.count("")
        words = f"{unknown} of 24 crops are of unknown cameras; they are all of camera c1 in {home}/m{i}"
        assert (words in text) == (i > 0)
        assert (f"{home}/m{i} has 0 queries, since no person was seen by two cameras" in text) == (i < 2)
        assert (not list((home/f"m{i}/query").iterdir())) == (i < 2)


def damage(tool, out, kind):
    "Make another kind of file of a tool's file."
    if tool == "label-studio":
        out.write_text(dict(other='[{"image": "x", "identity": "a"}]', broken="[{", empty="[]")[kind])
    elif tool == "cvat":
        out.write_text(dict(other="<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", broken="<annotations>",
                            empty="<annotations/>")[kind])
    elif tool == "fiftyone":
        (out/"labels.json").write_text(dict(other='{"labels": [1]}', broken="{", empty='{"labels": {}}')[kind])
        if kind == "empty": (out/"data.json").write_text("{}")
    else:
        train = out/"bounding_box_train"
        files = sorted(train.iterdir())
        if kind == "other": files[0].rename(train/"0001_c9s1_000001_00.jpg")
        elif kind == "broken": shutil.copyfile(files[5], train/("0009" + files[5].name[4:]))
        else: [f.unlink() for f in files]


@pytest.mark.parametrize("kind", ["other", "broken", "empty"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_damaged_export_is_one_sentence(home, tool, kind, capsys):
    out = write_tasks(read_crops(home/"who.csv"), home/OUT[tool], tool)
    damage(tool, out, kind)
    code = main(["labels", str(out), str(home/"who.csv"), str(home/"labels.csv")])
    err = capsys.readouterr().err.strip()
    assert code == 1 and err.startswith("upl-reid labels: ") and "\n" not in err and not (home/"labels.csv").exists()


@pytest.mark.parametrize("text, words", [
    ("name\nx\n", "has the columns name; its first line names columns"), ("path,identity\n", "lists no crop"),
    ("path\na.jpg\n./a.jpg\n", "again, after line 2"), ("path,identity\na.jpg,\"a\x01b\"\n", "no text"),
    ("path,camid\na.jpg,\udce4\n", "save the table as 'CSV UTF-8'"), ("path;camid\na.jpg;1\n", "save it with commas"),
    ("Path,Pid\na.jpg,1\n", "lower case"), ("path,camid\na.jpg,1,2\n", "1 field more"), ("path\na\0.jpg\n", "no file"),
    ("path\ngone.jpg\n", "line 2 names gone.jpg, which is no file")],
    ids=["columns", "empty", "twice", "control", "not-utf8", "semicolons", "case", "fields", "zero", "gone"])
def test_tables_that_cannot_be_written(tmp_path, text, words):
    Image.new("RGB", (8, 16)).save(tmp_path/"a.jpg")
    (tmp_path/"t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words): read_crops(tmp_path/"t.csv")


def test_nothing_is_replaced_or_half_written(home, capsys):
    crops = read_crops(home/"who.csv")
    for tool in ("fiftyone", "market1501"):
        write_tasks(crops, home/OUT[tool], tool)
        with pytest.raises(ConfigError, match="exists; choose another folder"): write_tasks(crops, home/OUT[tool], tool)
    (home/"tasks.json").write_text("{}")
    assert main(["tasks", str(home/"who.csv"), str(home/"tasks.json"), "--tool", "label-studio"]) == 1
    assert "was not written by this command" in capsys.readouterr().err and (home/"tasks.json").read_text() == "{}"
    with pytest.raises(ConfigError, match="should end with .xml for cvat"): write_tasks(crops, home/"a.json", "cvat")
    with pytest.raises(ConfigError, match="choose label-studio, cvat"): write_tasks(crops, home/"a", "paper")
    os.remove(crops[3].path)
    for tool in TOOLS:
        assert main(["tasks", str(home/"who.csv"), str(home/"new"/OUT[tool]), "--tool", tool]) == 1
        assert "which is no file" in capsys.readouterr().err
        assert not list(home.glob("*new.*"))
    with pytest.raises(DataError, match="no export of label-studio"): read_tasks(home/"crops", crops)


@pytest.fixture
def pictures(tmp_path):
    for i in range(8): Image.new("RGB", (8, 16), (i, 0, 0)).save(tmp_path/f"{i}.jpg")
    return tmp_path


def crops_of(home, text):
    (home/"t.csv").write_text(text, encoding="utf-8")
    return read_crops(home/"t.csv")


@pytest.mark.parametrize("columns", ["path,camid,pid,track", "path,camera,identity,track"])
def test_crops_are_read_by_the_rules_of_all_tables(pictures, columns):
    rows = ["1.0,7.0,3.0", "1,7,3", "nan,None,NA", ",-1.0,", ",,", " 1 , Cafe\u0301 ,3", "1,Caf\u00e9,3", "1,unknown,3"]
    crops = crops_of(pictures, "\n".join([columns.replace(",", ", "), *(f"{i}.jpg,{r}" for i, r in enumerate(rows))]))
    assert [(c.camera, c.identity, c.track) for c in crops] == [
        *[("1", "7", "3")]*2, *[("", "", "")]*3, *[("1", "Caf\u00e9", "3")]*2, ("1", "", "3")]
    images = list_images(pictures/"t.csv")                              # what check and adapt read
    assert list(images.camid) == [c.camera for c in crops] and list(images.track) == [c.track for c in crops]
    assert list(images.person[:7]) == [c.identity for c in crops[:7]]


@pytest.mark.parametrize("sure, score", [("high", None), ("nan", None), ("7", None), ("", None), (".5", .5), ("1", 1)])
def test_only_a_share_is_a_score(pictures, sure, score):
    crops = crops_of(pictures, f"path,identity,confidence\n0.jpg,Ann,{sure}\n")
    tasks = json.loads(write_tasks(crops, pictures/"t.json", "label-studio").read_text(), parse_constant=pytest.fail)
    assert tasks[0]["predictions"][0].get("score") == score
    labels = json.loads((write_tasks(crops, pictures/"f", "fiftyone")/"labels.json").read_text())["labels"]
    assert labels["0000000"].get("confidence") == score


@pytest.mark.parametrize("people", [["0", "1"], ["00", "person 00"], ["-5", "None"]], ids=["zero", "zeros", "words"])
@pytest.mark.parametrize("split", [True, False])
def test_every_name_stays_a_person(pictures, people, split):
    crops = [Crop(str(pictures/f"{i}.jpg"), f"c{i % 2}", people[i//2]) for i in range(4)]
    images = list_images(write_labels(crops, pictures/"labels.csv", split))
    people = [images[images.path.map(str).isin([c.path for c in crops[i:i + 2]])].pid.unique() for i in (0, 2)]
    assert [len(p) for p in people] == [1, 1] and people[0] != people[1] and min(people) >= split


def test_labels_for_measuring_can_be_corrected_again(pictures):
    crops = [Crop(str(pictures/f"{i}.jpg"), f"c{i % 2}", f"p{i//2}") for i in range(4)]
    assert read_crops(write_labels(crops, pictures/"labels.csv", split=True)) == crops


def test_other_files_in_a_market_folder_are_no_crops(home):
    crops = read_crops(home/"who.csv")
    folder = write_tasks(crops, home/"market", "market1501")/"bounding_box_train"
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"): (folder/name).touch()
    (folder/"new folder").mkdir()
    assert read_tasks(home/"market", crops) == {c.path: c.identity for c in crops}


def test_a_relative_export_of_fiftyone_is_found_from_its_folder(home, monkeypatch):
    crops, out = read_crops(home/"who.csv"), home/"fiftyone"
    write_tasks(crops, out, "fiftyone")
    files = json.loads((out/"data.json").read_text())
    (out/"data.json").write_text(json.dumps({i: os.path.relpath(path, out) for i, path in files.items()}))
    monkeypatch.chdir(home)
    assert read_tasks("fiftyone", crops) == {c.path: c.identity for c in crops}


# ---------------------------------------------------------------- the tools' own packages

def test_label_studio_accepts_configuration_and_tasks(home):
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    write_tasks(read_crops(home/"who.csv"), home/"tasks.json", "label-studio")
    project = interface((home/"tasks.config.xml").read_text())
    project.validate()
    tasks = json.loads((home/"tasks.json").read_text())
    for task in tasks:
        assert project.validate_task(dict(data=task["data"]))
        for prediction in task["predictions"]:
            assert project.validate_prediction(prediction, return_errors=True) == []
    wrong = copy.deepcopy(tasks[0]["predictions"][0])
    wrong["result"][0]["value"]["choices"] = ["nobody"]
    assert project.validate_prediction(wrong, return_errors=True)        # the check can fail


@pytest.mark.parametrize("tool, kind", [("cvat", "cvat"), ("market1501", "market1501")])
def test_the_library_of_cvat_reads_and_writes_it(home, tool, kind):
    datumaro = pytest.importorskip("datumaro")
    crops = read_crops(home/"who.csv")
    out = write_tasks(crops, home/OUT[tool], tool)
    if tool == "cvat": # as CVAT exports a task: images/ and annotations.xml
        shutil.copytree(home/"crops", home/"task/images")
        out = shutil.move(out, home/"task/annotations.xml").parent
    found = datumaro.Dataset.import_from(str(out), kind)
    wanted = {c.path: c.identity or "unknown" for c in crops}
    if tool == "cvat":
        names = dict(zip(tools.common_names(crops), wanted.values()))
        got = {item.id: [a.attributes["identity"] for a in item.annotations] for item in found}
        assert got == {name.rsplit(".", 1)[0]: [who] for name, who in names.items()}
        found.export(str(home/"again"), "cvat", save_media=False)
        [xml] = (home/"again").glob("*.xml")
        assert {p: who or "unknown" for p, who in read_tasks(_with_suffixes(xml, crops), crops).items()} == wanted
    else:
        train = [item for item in found if item.subset == "train"]
        names = [n.split("_") for n in tools.market_names(crops)]
        got = sorted(tuple(i.attributes[k] for k in ("frame_id", "person_id", "camera_id")) for i in train)
        assert got == [(i, n[0], int(n[1][1]) - 1) for i, n in enumerate(names, 1)]
        found.export(str(home/"again"), "market1501", save_media=True)
        assert read_tasks(home/"again", crops) == {c.path: c.identity for c in crops}
        found.export(str(home/"lists"), "market1501", save_media=False)   # as CVAT exports without images
        shutil.rmtree(home/"lists/bounding_box_train", ignore_errors=True)
        assert read_tasks(home/"lists", crops) == {c.path: c.identity for c in crops}


def _with_suffixes(xml, crops):
    "datumaro writes names with the suffix .jpg for all; CVAT itself keeps the names of the task."
    text = xml.read_text(encoding="utf-8")
    tree = ElementTree.fromstring(text)
    suffix = {n.rsplit(".", 1)[0]: n for n in tools.common_names(crops)}
    for image in tree.iter("image"): image.set("name", suffix[image.get("name").rsplit(".", 1)[0]])
    xml.write_bytes(ElementTree.tostring(tree, encoding="utf-8"))
    return xml


def test_fiftyone_reads_and_writes_it(home):
    pytest.importorskip("fiftyone")
    from fiftyone.utils.data.exporters import FiftyOneImageClassificationDatasetExporter
    from fiftyone.utils.data.importers import FiftyOneImageClassificationDatasetImporter
    crops = read_crops(home/"who.csv")
    out = write_tasks(crops, home/"fiftyone", "fiftyone")
    importer = FiftyOneImageClassificationDatasetImporter(dataset_dir=str(out), data_path="data.json")
    importer.setup()
    samples = list(importer)
    assert {path: label.label if label else "" for path, _, label in samples} == {c.path: c.identity for c in crops}
    assert {label.confidence for _, _, label in samples if label} == {.75}
    for name, how in (("manifest", dict(data_path="data.json")), ("paths", dict(export_media=False, abs_paths=True))):
        exporter = FiftyOneImageClassificationDatasetExporter(export_dir=str(home/name), **how)
        with exporter:
            for path, _, label in samples: exporter.export_sample(path, label)
        assert read_tasks(home/name, crops) == {c.path: c.identity for c in crops}, name


def test_labels_of_a_table_without_changes(home):
    crops = read_crops(home/"who.csv")
    (home/"deep").mkdir()
    write_labels(crops, home/"deep/labels.csv")
    with pytest.raises(DataError, match="no person was seen by two cameras"):
        write_labels([c for c in crops if c.camera == crops[0].camera], home/"one.csv", split=True)
    assert not (home/"one.csv").exists()
    assert read_crops(home/"deep/labels.csv") == [Crop(c.path, c.camera, c.identity, c.time, c.track) for c in crops]


def test_a_task_that_nobody_annotated_keeps_the_identity_of_the_table(tmp_path):
    "Label Studio 1.23 exports the numbers of predictions, not what they say."
    crops = [Crop(f"/{i}.jpg", "c", "Ann") for i in range(4)]
    chosen = [dict(from_name="identity", value=dict(choices=["Ben"]))]
    tasks = [dict(data=dict(path="/0.jpg"), annotations=[], predictions=[6]),
             dict(data=dict(path="/1.jpg"), annotations=[dict(result=chosen)], predictions=[7]),
             dict(data=dict(path="/2.jpg"), annotations=[dict(result=[])], predictions=[8])]
    (tmp_path/"export.json").write_text(json.dumps(tasks))
    labels = tools.read_label_studio(tmp_path/"export.json")
    assert labels == {"/0.jpg": None, "/1.jpg": "Ben", "/2.jpg": ""}
    assert [(c.path, c.identity) for c in tools.label_crops(crops, labels)] == [
        ("/0.jpg", "Ann"), ("/1.jpg", "Ben"), ("/2.jpg", "")]
