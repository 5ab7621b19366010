"""The page of `run.py view`, in a real browser: what it shows is what Python computes, and data stay text."""

import os
import re
import shutil
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

import run
import slidr
from data.boxes import corners
from data.datasets import nuscenes
from data.datasets.synthetic import SyntheticWorld, write_kitti, write_nuscenes
from data.frame import Needs
from slidr import viewer
from slidr.config import View
from slidr.inference import image_features, open_image_network
from slidr.networks.model_file import backbone_weights, write_model
from slidr.networks.student import Student, StudentSpec
from slidr.teachers import load_teacher

SCENE = "<img src=x onerror=document.body.remove()>&amp;</script>\u2028"
WORDS = (
    "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update"
)
WORDS += " --disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader --window-size=900,640"
SPEC = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.2, 1, 0.2))

pytestmark = pytest.mark.slow  # a browser that draws in software


def layers(out, into):
    return [{"weight": torch.randn(out, into), "bias": torch.zeros(out)}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(page, what was printed, model.pt, the reader): two frames of a scene with a hostile name, every head."""
    folder = tmp_path_factory.mktemp("view")
    world = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=2, image_scale=0.1, azimuths=96)
    write_nuscenes(folder / "world/nuscenes", world)
    for table in (folder / "world/nuscenes").glob("v1.0-*/*.json"):
        hostile = SCENE.replace("\u2028", "\\u2028")
        table.write_text(table.read_text().replace('"scene-9002"', f'"{hostile}"'))
    torch.manual_seed(0)
    student, classes = Student(SPEC, None, 0.1), nuscenes.RECORD.classes
    heads = {"point_head": layers(8, 24), "image_head": layers(8, 64), "class_head": layers(len(classes), 24)}
    teacher = load_teacher("resnet_small", "random").identity()
    parts = {"backbone": backbone_weights(student), "classes": classes, "teacher": teacher}
    write_model(folder / "model.pt", stage="linprobe", spec=SPEC, **parts, **heads)
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as out:
        patch.chdir(folder)
        said = []
        out.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        words = ["view", "--root=world", "--weights=model.pt", "--crop=40,64", "--segments=20", f"--scene={SCENE}"]
        assert run.main(words) == 0, said
        (page,) = (folder / "output").rglob("*.html")
        reader = nuscenes.NuScenes(folder / "world/nuscenes", "val")
    return page, "\n".join(said), folder / "model.pt", reader


@pytest.fixture(scope="module")
def browser(made):
    """Chromium with the page, ready. Skips without it, fails under CI=true."""
    paths = shutil.which("chromium"), shutil.which("chromedriver")
    if None in paths:
        missing = "chromium and chromedriver are not there (Debian: chromium, chromium-driver)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for word in (*WORDS.split(), f"--user-data-dir={profile}"):
            options.add_argument(word)
        driver = webdriver.Chrome(options, Service(paths[1]))
        driver.set_script_timeout(120)  # a busy machine draws slowly
        driver.get(made[0].as_uri())
        wait(driver, "'ready' in document.body.dataset")
        yield driver
        driver.quit()


def wait(driver, condition: str) -> None:
    end = time.monotonic() + 60
    while not driver.execute_script(f"return {condition}"):
        assert time.monotonic() < end, (condition, driver.get_log("browser"))
        time.sleep(0.05)


def features(made, index: int) -> tuple[np.ndarray, np.ndarray]:
    points = made[3].read(index, Needs()).points
    return points, slidr.load(made[2])(points).numpy()


def drawn(browser) -> tuple[int, int]:
    """What every fifth pixel of the scene shows: how many colours, and a checksum."""
    return tuple(
        browser.execute_script(
            """draw();
            const pixels = new Uint32Array(view.width * view.height);
            gl.readPixels(0, 0, view.width, view.height, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(pixels.buffer));
            const some = pixels.filter((_, i) => i % 5 === 0);
            return [new Set(some).size, some.reduce((sum, pixel) => (sum * 31 + pixel) % 4294967291, 0)];"""
        )
    )


def choose(browser, mode: str) -> None:
    browser.execute_script("$('mode').value = arguments[0]; $('mode').onchange()", mode)


def test_boxes_are_lines_that_can_be_left_out(browser, made):
    truth = made[3].read(0, Needs(boxes=True)).boxes
    choices, before = browser.execute_script("return [...$('boxes').options].map(o => o.value)"), drawn(browser)
    assert choices == ["true", "none"] and len(truth)
    ends, *place = browser.execute_script("return [boxEnds, ...current.trueLines.slice(0, 3)]")
    assert ends == 28 * len(truth) and np.allclose(place, corners(truth)[0, 0], atol=1e-4)
    browser.execute_script("$('boxes').value = 'none'; $('boxes').onchange()")
    assert browser.execute_script("return boxEnds") == 0 and drawn(browser) != before
    browser.execute_script("$('boxes').value = 'true'; $('boxes').onchange()")
    assert drawn(browser) == before


def click_alone(browser) -> int:
    """Click on a point that stands alone on the screen; its row."""
    row, x, y = browser.execute_script(
        """const places = Array.from({ length: current.n }, (_, i) => screen(i)), box = view.getBoundingClientRect();
        const apart = (i, j) => Math.hypot(places[i][0] - places[j][0], places[i][1] - places[j][1]);
        for (let i = 0; i < current.n; i++) {
          const [x, y, w] = places[i], free = document.elementFromPoint(box.left + x, box.top + y) === view;
          if (w > 1 && free && places.every((p, j) => j === i || p[2] < 0 || apart(i, j) > 12)) return [i, x, y];
        }"""
    )
    canvas = browser.find_element(By.ID, "view")
    offset = round(x - canvas.size["width"] / 2), round(y - canvas.size["height"] / 2)
    ActionChains(browser, duration=0).move_to_element_with_offset(canvas, *offset).click().perform()
    wait(browser, "query !== null")
    return row


def test_the_page_draws_the_points_and_asks_nothing_of_the_network(browser):
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name.slice(0, 5))") == []
    shot = np.asarray(Image.open(BytesIO(browser.find_element(By.ID, "view").screenshot_as_png)).convert("RGB"))
    assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 10
    before = drawn(browser)
    choose(browser, "height")
    assert before[0] > 10 and drawn(browser) != before
    widths = browser.execute_script("return [...$('cameras').querySelectorAll('canvas')].map(c => c.clientWidth)")
    assert len(widths) == 6 and min(widths) > 100


def test_every_mode_colours_every_point_and_has_a_legend(browser):
    modes = browser.execute_script("return [...$('mode').options].map(o => o.value)")
    assert modes == "similarity features prediction truth right height intensity distance colour".split()
    told = browser.execute_script(
        """return [...$("mode").options].map(option => {
          $("mode").value = option.value;
          $("mode").onchange();
          return colours.length === 3 * current.n && new Set(colours).size > 1 && $("legend").innerText;
        })"""
    )
    assert all(told) and "cosine" in told[0] and "vegetation" in told[3] and "wrong" in told[4]
    assert browser.get_log("browser") == []


def test_a_click_gives_the_similarities_that_python_computes(made, browser):
    browser.execute_script("return show(0)")
    row = click_alone(browser)
    assert browser.execute_script("return query.point") == row
    for frame in (0, 1):
        browser.execute_script("return show(arguments[0])", frame)
        similarity = browser.execute_script("return [...similarity]")
        exact = features(made, frame)[1] @ features(made, 0)[1][row]
        np.testing.assert_allclose(similarity, exact, atol=0.02)  # 8 dimensions of 8 bits
        assert np.ptp(exact) > 0.1
    browser.execute_script("return show(0)")
    assert f"similarity {similarities_of(browser)[row]:.3f}" in browser.find_element(By.ID, "hover").text
    whole = browser.execute_script("return [...colours.subarray(3 * arguments[0], 3 * arguments[0] + 3)]", row)
    np.testing.assert_allclose(whole, [253, 231, 37], atol=8)  # the yellow end of viridis


def similarities_of(browser) -> list[float]:
    return browser.execute_script("describe(query.point); return [...similarity]")


def test_a_click_on_a_picture_asks_what_is_like_its_pixel(made, browser):
    browser.execute_script("return show(0)")
    picture = browser.find_elements(By.CSS_SELECTOR, "#cameras canvas")[0]
    ActionChains(browser, duration=0).move_to_element(picture).click().perform()
    wait(browser, "query.pixel")
    camera, x, y = browser.execute_script("return query.pixel")
    model, image = slidr.load(made[2]).model, made[3].read(0, Needs(cameras="all")).cameras[camera].image
    teacher, _ = open_image_network(model, View())
    small = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.interpolate(small, (40, 64), mode="bilinear")
    pixels = torch.nn.functional.normalize(image_features(model, teacher, small)[0], dim=0).movedim(0, -1).numpy()
    query = pixels[int(y * pixels.shape[0]), int(x * pixels.shape[1])]
    np.testing.assert_allclose(similarities_of(browser), features(made, 0)[1] @ query, atol=0.03)


def test_the_slider_and_the_keys_change_frames(made, browser):
    browser.execute_script("return show(0)")
    before = drawn(browser)
    browser.find_element(By.ID, "frame").send_keys(Keys.ARROW_RIGHT)
    wait(browser, "$('frameName').textContent.includes('frame 2 of 2')")
    assert browser.execute_script("return current.n") == len(features(made, 1)[0])
    assert drawn(browser) != before
    browser.find_element(By.ID, "view").send_keys(",")
    wait(browser, "$('frameName').textContent.includes('frame 1 of 2')")


def test_mouse_fingers_and_keys_move_the_eye(browser):
    def eye():
        return browser.execute_script("return { ...eye, x: eye.target[0] }")

    canvas, before = browser.find_element(By.ID, "view"), eye()
    ActionChains(browser, duration=0).move_to_element(canvas).click_and_hold().move_by_offset(
        40, 30
    ).release().perform()
    turned = eye()
    assert turned["yaw"] != before["yaw"] and turned["pitch"] > before["pitch"] and turned["x"] == before["x"]
    canvas.send_keys("w+")
    assert eye()["distance"] < turned["distance"] and eye()["x"] != turned["x"]
    apart = eye()["distance"]
    browser.execute_script(
        """const send = (kind, id, x) => view.dispatchEvent(new PointerEvent(kind,
          { pointerId: id, pointerType: "touch", clientX: x, clientY: 300, bubbles: true }));
        view.setPointerCapture = () => {};  // which wants real fingers
        send("pointerdown", 7, 400), send("pointerdown", 8, 500), send("pointermove", 8, 600);
        send("pointerup", 8, 600), send("pointerup", 7, 400);"""
    )
    assert eye()["distance"] == pytest.approx(apart / 2)
    canvas.send_keys("r")
    assert eye()["distance"] == before["distance"]


def test_texts_from_data_stay_texts(browser):
    assert SCENE in browser.find_element(By.ID, "frameName").get_property("textContent")
    assert SCENE in browser.execute_script("return document.title + $('about').textContent")
    assert browser.find_elements(By.CSS_SELECTOR, "img") == [] and browser.find_element(By.ID, "view").is_displayed()


def test_what_is_printed(made):
    page, said, _, _ = made
    assert f"view: {page.relative_to(made[2].parent)}" in said and "which keep 100.0 % of their variance" in said
    assert "8 of 8 dimensions" in said and "2 frames" in said and "resnet_small (randomly initialised" in said
    assert float(re.search(r"([\d.]+) bytes each", said)[1]) <= 40
    assert float(re.search(r"correlation ([\d.]+)", said)[1]) > 0.9
    html = page.read_text()
    assert [text in html for text in ("onerror", "<img src=x", "\u2028")] == [True, False, False]


def test_sixteen_dimensions_keep_as_much_as_sixteen_can():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 64)) * 0.8 ** np.arange(64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    basis = viewer.Basis([vectors[:250], vectors[250:]])
    spectrum = np.linalg.svd(vectors, compute_uv=False) ** 2
    assert basis.variance == pytest.approx(spectrum[:16].sum() / spectrum.sum(), abs=1e-6)
    kept = basis.pack(vectors).T * basis.scale
    assert np.abs(kept @ kept.T - vectors @ vectors.T).max() < 0.05
    assert basis.rank_correlation(vectors, rng) > 0.99


def test_scans_alone_make_a_page_too_with_classes_of_another_data_set(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_kitti(tmp_path / "kitti", SyntheticWorld(1, 1, 1, image_scale=0.05, azimuths=64))
    for images in tmp_path.rglob("image_2"):
        shutil.rmtree(images)
    assert run.main(["view", "--dataset=kitti", "--root=kitti", f"--weights={made[2]}"]) == 0
    assert "no cameras: " in capsys.readouterr().out
    html = Path("output/view/kitti/val_0.html").read_text()
    assert '"comparable":false' in html and '"cameras":[]' in html
    assert run.main(["view", "--dataset=kitti", "--root=kitti", f"--weights={made[2]}", "--scene=none such"]) == 2
    assert "has no scene none such; choose one of" in capsys.readouterr().err


def test_a_page_without_boxes_that_cannot_be_read(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_nuscenes(tmp_path / "nuscenes", SyntheticWorld(1, 1, 1, image_scale=0.05, azimuths=64))
    (table,) = tmp_path.rglob("sample_annotation.json")
    table.write_bytes(table.read_bytes()[:1000])
    words = ["view", "--dataset=nuscenes", "--root=nuscenes", f"--weights={made[2]}", "--segments=9", "--crop=40,64"]
    assert run.main(words) == 0
    assert "no boxes: the annotations cannot be read" in capsys.readouterr().out
    assert '"boxes":[]' in Path("output/view/nuscenes/val_0.html").read_text()
