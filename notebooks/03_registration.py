# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · Registration
#
# ← [02 The feature extractor](02_feature_extractor.ipynb) · [04 Methods without training](04_baselines.ipynb) → · takes: a minute in the quick profile
#
# A network looks at a moving image $M$ and a fixed image $F$ and predicts, for every voxel $x$ of the fixed image, where in
# the moving image its content is found: at $x + u(x)$. Pulling every voxel from there gives the moved image
# $M\circ\Phi$ with $\Phi(x) = x + u(x)$.
#
# Nobody tells the network the right $u$. It learns by making the moved image similar to the fixed one while keeping $u$
# smooth:
#
# $$\mathcal L = D(M\circ\Phi,\, F) + \lambda\, R(u)$$
#
# The whole question of the paper is the choice of $D$. With DeepSim, a second network, trained before and frozen, looks at
# both images; the gradient runs back through it into the warp.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile
method: str = "deepsim-seg"  # a similarity of the profile; in the stage ablation: a variant
stage: str = "registration"  # tuning, registration or ablation
lam: str = "tuned"  # weight of the regulariser: a number, or tuned: the profile's, or the best of its grid
seed: str = "profile"  # of initial weights, samples and augmentation; profile: its first
steps: str = "profile"  # optimiser steps; a number needs a folder
extractor: str = ""  # run folder of another feature extractor; it needs a folder
folder: str = ""  # of a run with settings of your own; empty: runs/<profile>/<dataset>/<stage>/<method>/seed-<s>

# %%
import pandas as pd
import torch

from deepsimreg.paper import figures
from deepsimreg.losses import Alignment, diffusion
from deepsimreg.paper.evaluate import Entry, evaluate
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import similarity_of, train_registration
from deepsimreg.warps import jacobian_determinant, warp_image, warp_labels

plan = Profile(profile)
data = plan.data(dataset)
changes = {} if steps == "profile" else {"steps": steps}
first = None if seed == "profile" else int(seed)
run = plan.registration(dataset, method, stage, lam, first, folder, extractor, **changes)
figures.training_schematic()

# %% [markdown]
# ## The similarity
#
# | name | $D(A, B)$ of two images | compares |
# |---|---|---|
# | `mse` | $\dfrac1P\sum_p (A_p - B_p)^2$ | grey values |
# | `ncc` | $1 - \dfrac1P\sum_p \dfrac{\mathrm{cov}_w(A, B)_p^2}{\mathrm{var}_w(A)_p\,\mathrm{var}_w(B)_p}$ | grey values in a window $w$, up to brightness and contrast |
# | `ncc-sup` | `ncc` + $\dfrac1{PK}\sum_p \lVert \text{label}_{A,p} - \text{label}_{B,p}\rVert^2$ of one-hot labels of $K$ classes | grey values and, in training, labels |
# | `ncc-dice` | `ncc` + $1 - \dfrac1K\sum_k \mathrm{Dice}_k$ of the warped and the fixed one-hot label, without the background | as `ncc-sup` |
# | `nmi` | $2 - \dfrac{H(A) + H(B)}{H(A, B)}$ | how well the grey values of one image predict those of the other |
# | `ncc-3`, `ncc-25` | as `ncc` (window 9), in windows of 3; of 5 × 5 pixels, with the sign of the correlation, or 3 × 3 × 3 voxels | finer detail |
# | `mind` | $\dfrac{1}{PC}\sum_p \lVert \text{MIND}(A)_p - \text{MIND}(B)_p\rVert^2$, $C$ entries of the descriptor: 4 in planes, 12 in volumes | each voxel's likeness to its neighbourhood |
# | `vgg` | as below, features of a network trained on photographs | edges and textures of photographs (2D) |
# | `deepsim-…` | $1 - \dfrac1L\sum_l \dfrac{1}{P_l}\sum_p \dfrac{\langle f_l(A)_p,\, f_l(B)_p\rangle}{\lVert f_l(A)_p\rVert\,\lVert f_l(B)_p\rVert}$ | what a frozen network sees, at $L = 3$ resolutions |
# | `ncc-seg`, `ncc-ae` | mean of `ncc-25` of the image and of the principal components of the features | grey values and features |
# | `classes-seg` | $\sum_k \operatorname{mean}_p \big(s_k(A)_p - s_k(B)_p\big)^2$, $s_k$ the probability of class $k$ | predicted classes |
# | `ncc + 0.5 mind` | a weighted sum | both terms |
#
# The extractor of a DeepSim similarity comes from its own run ([chapter 2](02_feature_extractor.ipynb)). In the quick
# profile it is trained here if it is missing.

# %% tags=["nbval-ignore-output"]
measure = similarity_of(plan, run).eval()

# %%
pair = data.pairs("test")[0]
moving, fixed = pair.moving.image[None], pair.fixed.image[None]
labels = {"moving_label": pair.moving.label[None], "fixed_label": pair.fixed.label[None]}
still = torch.zeros(1, data.ndim, *data.shape)


def between(image, label):
    """The similarity of an image and the fixed one, as they are."""
    return measure.compare(Alignment(image, fixed, still, label, labels["fixed_label"], len(data.classes))).item()


print(f"fixed with itself        {between(fixed, labels['fixed_label']):.2f}")

# %% tags=["nbval-ignore-output"]
print(f"moving with fixed        {between(moving, labels['moving_label']):.4f}")
print(f"mirrored with fixed      {between(fixed.flip(-1), labels['fixed_label'].flip(-1)):.4f}")

# %% [markdown]
# A similarity is useful if the unregistered pair lies between the two extremes, an image with itself and two images that
# have nothing to do with each other, and comes down smoothly as the pair is aligned. The mirrored image has the same texture, and
# nothing in its place.
#
# ## DeepSim from scratch
#
# The formula in the table, line by line: features of both images, the cosine over the channels at every position, the mean
# over positions and then over levels. The package does the same, and clamps the squared norms where features vanish.

# %% tags=["nbval-ignore-output"]
from deepsimreg.losses import DeepSim
from deepsimreg.paper.extractors import load_extractor


def deepsim(a: torch.Tensor, b: torch.Tensor, extractor: torch.nn.Module) -> torch.Tensor:
    cosines = []
    for ours, theirs in zip(extractor.features(a), extractor.features(b), strict=True):
        product = (ours * theirs).sum(dim=1)
        norms = ours.norm(dim=1).clamp(min=1e-3) * theirs.norm(dim=1).clamp(min=1e-3)
        cosines.append((product / norms).mean())
    return 1 - torch.stack(cosines).mean()


# %% tags=["nbval-ignore-output"]
trained = [one.name for one in plan.extractors(dataset) if one.current]
kind = next((kind for kind in ("seg", "ae") if f"extractor-{kind}" in trained), "")
eyes = load_extractor(plan, dataset, kind).requires_grad_(False) if kind else None
if eyes is not None:
    ours, theirs = deepsim(moving, fixed, eyes), DeepSim(eyes)(moving, fixed)
    print(f"from scratch {ours:.6f}, package {theirs:.6f}, difference {abs(ours - theirs):.1e}")

# %% [markdown]
# ## What each similarity makes of a shift
#
# Shift the fixed image against itself, with noise drawn anew, and plot the loss. A loss that can be optimised has its one
# minimum where the shift is zero and rises steadily on both sides; where it is flat, there is no gradient to follow. MSE and
# DeepSim rise over the whole range. Local correlation, MIND and NMI have a narrow minimum: they only pull when the images are
# nearly aligned. That is why registration goes coarse to fine, where one position covers several voxels. (Scales differ
# between losses and cannot be compared. The image's own noise is in both copies, so losses of grey values look sharper at zero
# than they are between two images.)

# %% tags=["nbval-ignore-output"]
from deepsimreg.losses import build_similarity
from deepsimreg.paper.landscape import loss_landscape_curves

measures = {name: build_similarity(name) for name in ("mse", "ncc", "ncc-25", "nmi", "mind")}
if eyes is not None:
    measures[f"deepsim-{kind}"] = DeepSim(eyes)
figures.loss_landscape(loss_landscape_curves(fixed, measures, max_shift=min(10, data.shape[-1] // 5)))

# %% [markdown]
# ## The regulariser
#
# Diffusion: the mean of squared forward differences of $u$ over voxels, components $c$ and axes $a$,
#
# $$R(u)=\frac{1}{d^2}\sum_{a,c=1}^{d}\operatorname{mean}_x\,\big(u_c(x+e_a)-u_c(x)\big)^2,$$
#
# (for voxels of unequal spacing $h$ each difference is scaled by $h_c/h_a$), zero for a translation, and larger the more neighbours disagree; for independent noise of SD 1 each squared difference is 2
# on average, as printed below. λ says what a unit of it costs: the profile gives it, or
# [chapter 5](05_tuning.ipynb) chooses it on the validation pairs.

# %%
shift = torch.full((1, data.ndim, *data.shape), 2.0)
noise = torch.randn(shift.shape, generator=torch.Generator().manual_seed(0))
print(f"R of a translation {diffusion(shift):.3f}, of random noise {diffusion(noise):.1f}")

# %% [markdown]
# ## Training
#
# The paper's network predicts $u$ itself. The light profiles let it predict a stationary velocity $v$ instead and
# integrate it by scaling and squaring, $\Phi = \exp(v)$, which does not fold in the limit of small steps (Dalca et al.
# 2018). Batches are pairs of the training split; validation Dice decides which weights are kept.
#
# The same notebook trains three kinds of runs: short ones with each λ of a grid (`stage=tuning`), the ones that are tested
# (`stage=registration`), and variants (`stage=ablation`).

# %% tags=["nbval-ignore-output"]
network, history = train_registration(plan, run, data)

# %% tags=["nbval-ignore-output"]
columns = ["train_loss", "validation_loss", "train_dice", "validation_dice"]
columns += ["validation_folds"] if history.get("validation_folds", pd.Series([0])).max() > 0 else []  # none: no panel
figures.learning_curve(history, columns) if run.settings.fit.steps else "initial weights, not trained"

# %% [markdown]
# Training pairs are random and augmented, so the two losses are not directly comparable. The loss compares no labels, except
# in `ncc-sup` and `ncc-dice`. DeepSim (seg) still knows labels indirectly: its extractor learned them from the training
# images. If Dice rises on validation pairs, the similarity aligns anatomy there, too; if the loss falls and Dice does not, the
# similarity is lowered without aligning it: by noise, light, or borders.
#
# ## A pair, before and after
#
# One pair of the test split. The contours are labels; they are no input of the network. The grid shows where every voxel of
# the fixed image comes from; the last panel is the Jacobian determinant
#
# $$|\nabla\Phi|(x) = \det\left(\mathrm{Id} + \nabla u(x)\right),$$
#
# 1 where volume is kept, and 0 or less where space is folded over itself, which no tissue does. (The code published with
# the paper took the absolute value of every finite difference and so [under-counted folds](../docs/authors-code.md); this is
# the true determinant.)

# %%
with torch.no_grad():
    displacement = network(moving, fixed)
moved = warp_image(moving, displacement)
moved_label = warp_labels(pair.moving.label[None], displacement)
figures.pair_before_after(
    moving,
    fixed,
    moved,
    displacement,
    pair.moving.label,
    pair.fixed.label,
    moved_label,
    data.classes,
    data.colors,
)

# %% tags=["nbval-ignore-output"]
jacobian = jacobian_determinant(displacement)
print(f"|u| up to {displacement.norm(dim=1).max():.1f} voxels, |∇Φ| from {jacobian.min():.2f} to {jacobian.max():.2f}")

# %% [markdown]
# ## Validation
#
# All validation pairs, without and with the network. The weights are those with the best mean Dice here; how λ is chosen is
# the subject of [chapter 5](05_tuning.ipynb). The test pairs wait for [chapter 6](06_evaluation.ipynb).

# %% tags=["nbval-ignore-output"]
columns = ["dice", "dice_foreground", "folds", "sd_log_jacobian", "target_registration_error"]
before = evaluate([Entry({}, None)], data, "validation")[columns].mean()
after = pd.read_csv(run.validation)[columns].mean()
before.to_frame("unregistered").assign(**{method: after}).T.round(4)

# %% tags=["nbval-ignore-output"]
gain = after["dice"] - before["dice"]
said = "it registers" if gain > 0.01 else "it has hardly left the identity, and what it shows above is no result"
print(f"The network changes the mean Dice of the validation pairs by {gain:+.3f}: {said}.")

# %% [markdown]
# What the run's folder records:

# %% tags=["nbval-ignore-output"]
best = ", ".join(f"{name} {value:.4g}" for name, value in run.result()["best"].items())
print(f"{run}: λ {run.result()['lam']:g}, best {best}")

# %% [markdown]
# ## What to take away
#
# - Similarity and regulariser pull in opposite directions; λ is the exchange rate and has to be chosen for each $D$.
# - The displacement pulls: $\text{moved}(x) = \text{moving}(x + u(x))$, in voxels of the fixed image.
# - Dice without a look at the folds is half a result.
#
# **Exercises.** 1. Why is `ncc` indifferent to an inverted image and `ncc-25` in planes not? 2. Feed `deepsim` two
# different constant images. Why is the result not 1, and which part of the network is responsible? 3. Run with `method="mse"` and compare the two learning curves: does the loss that
# falls further give the higher Dice?
