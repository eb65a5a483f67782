import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from unif2ace.modeling_unif2ace.configuration_unif2ace import UniF2aceFaceEncoderConfig
from unif2ace.modeling_unif2ace.face_alignment_unif2ace import ARCFACE_TEMPLATE, align_face, similarity_transform
from unif2ace.modeling_unif2ace.face_encoder_unif2ace import UniF2aceFaceEncoder
from unif2ace.training.synthetic.encoder_tasks import ArcFaceHead, verification_metrics


TEMPLATE = np.array(ARCFACE_TEMPLATE)


def small_encoder() -> UniF2aceFaceEncoder:
    torch.manual_seed(0)
    return UniF2aceFaceEncoder(
        UniF2aceFaceEncoderConfig(
            image_size=16, stem_channels=8, stage_channels=[8, 16], stage_blocks=[1, 2], embedding_size=12
        )
    )


def test_default_shape_is_iresnet_100():
    with torch.device("meta"):
        encoder = UniF2aceFaceEncoder(UniF2aceFaceEncoderConfig())
    assert sum(isinstance(module, torch.nn.PReLU) for module in encoder.modules()) == 50
    assert sum(isinstance(module, torch.nn.Conv2d) for module in encoder.modules()) == 103
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(65.15e6, rel=1e-3)


def test_weights_and_statistics_survive_saving(tmp_path):
    encoder = small_encoder()
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(torch.randn(8, 3, 16, 16) + 1.0)
    encoder.eval().save_pretrained(tmp_path)
    again = UniF2aceFaceEncoder.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 16, 16)
    embeddings = encoder(pixels).embeddings
    assert embeddings.shape == (2, 12)
    torch.testing.assert_close(again(pixels).embeddings, embeddings)
    assert again.bn1.num_batches_tracked == 3


def test_missing_weights_are_initialised(tmp_path):
    encoder = small_encoder()
    state = {name: value for name, value in encoder.state_dict().items() if "layers" not in name}
    encoder.save_pretrained(tmp_path, state_dict=state)
    again = UniF2aceFaceEncoder.from_pretrained(tmp_path).eval()
    assert torch.isfinite(again(torch.randn(2, 3, 16, 16)).embeddings).all()
    for module in again.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.running_var == 1).all() and (module.running_mean == 0).all()


def test_wrong_pictures_are_refused():
    with pytest.raises(ValueError, match=r"expected \(batch_size, 3, 16, 16\)"):
        small_encoder()(torch.zeros(1, 3, 8, 8))


def rotation(degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, shift])


def test_template_maps_to_itself():
    np.testing.assert_allclose(similarity_transform(TEMPLATE, TEMPLATE), [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))
    assert np.array_equal(align_face(noise, TEMPLATE), noise)


@pytest.mark.parametrize("degrees", [0, 25, 180, -100])
def test_similarity_is_recovered(degrees):
    matrix = rotation(degrees, 2.5, (40.0, -7.0))
    moved = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(similarity_transform(TEMPLATE, moved), matrix, atol=1e-9)


def test_similarity_never_mirrors():
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(similarity_transform(TEMPLATE, mirrored)[:, :2]) > 0


@pytest.mark.parametrize("size", [112, 224])
def test_rotated_landmarks_land_on_the_template(size):
    matrix = rotation(30, 2.0, (150.0, 20.0))
    landmarks = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    picture = Image.new("RGB", (400, 400))
    draw = ImageDraw.Draw(picture)
    for x, y in landmarks:
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill="white")
    aligned = np.asarray(align_face(picture, landmarks, size).convert("L"), dtype=float)
    ys, xs = np.mgrid[:size, :size]
    for x, y in TEMPLATE * size / 112:
        near = aligned * ((xs - x) ** 2 + (ys - y) ** 2 < (8 * size / 112) ** 2)
        centre = np.array([(near * xs).sum(), (near * ys).sum()]) / near.sum()
        np.testing.assert_allclose(centre, (x, y), atol=0.75 * size / 112)


@pytest.mark.parametrize("landmarks", [TEMPLATE[:4], np.ones((5, 2)), TEMPLATE[:, :1]])
def test_bad_landmarks_are_refused(landmarks):
    with pytest.raises(ValueError, match="landmarks|points"):
        align_face(Image.new("RGB", (8, 8)), landmarks)


def test_arcface_margin_makes_the_own_person_harder():
    torch.manual_seed(0)
    head = ArcFaceHead(6, 4, scale=16.0)
    embeddings, people = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    plain, cosines = head(embeddings, people, 0.0)
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(16.0 * cosines, people))
    assert head(embeddings, people, 0.5)[0] > plain


def test_verification_of_perfect_and_of_random_embeddings():
    torch.manual_seed(0)
    people = torch.arange(30).repeat_interleave(4)
    perfect = verification_metrics(torch.nn.functional.one_hot(people).float(), people)
    assert perfect["verification_accuracy"] == 1.0 and perfect["auc"] == 1.0
    random = verification_metrics(torch.randn(120, 16), people)
    assert 0.3 < random["auc"] < 0.7
