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
# A network looks at a moving image $I$ and a fixed image $J$ and says, for every voxel $x$ of the fixed image, where in
# the moving image its content is found: at $x + u(x)$. Pulling every voxel from there gives the moved image
# $I\circ\Phi$ with $\Phi(x) = x + u(x)$.
#
# Nobody tells the network the right $u$. It learns by making the moved image similar to the fixed one while keeping $u$
# smooth:
#
# $$L = D(I\circ\Phi,\, J) + \lambda\, R(u)$$
#
# The whole question of the paper is the choice of $D$.

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

# %% [markdown]
# ## The similarity
#
# | name | $D(I, J)$ | compares |
# |---|---|---|
# | `mse` | $\frac1P\sum_p (I_p - J_p)^2$ | grey values |
# | `ncc` | $1 - \frac1P\sum_p \frac{\mathrm{cov}_w(I, J)_p^2}{\mathrm{var}_w(I)_p\,\mathrm{var}_w(J)_p}$ | grey values in a window $w$, up to brightness and contrast |
# | `ncc-sup` | `ncc` + $\frac1{PK}\sum_p \lVert \text{label}_{I,p} - \text{label}_{J,p}\rVert^2$ of one-hot labels of $K$ classes | grey values and, in training, labels |
# | `ncc-dice` | `ncc` + $1 - \frac1K\sum_k \mathrm{Dice}_k$ of the warped and the fixed one-hot label, without the background | as `ncc-sup` |
# | `nmi` | $2 - \frac{H(I) + H(J)}{H(I, J)}$ | how well the grey values of one image predict those of the other |
# | `mind` | $\operatorname{mean} \lVert \text{MIND}(I) - \text{MIND}(J)\rVert^2$ | each voxel's likeness to its neighbourhood |
# | `vgg` | as below, $F$ of a network trained on photographs | edges and textures of photographs (2D) |
# | `deepsim-…` | $1 - \frac1L\sum_l \frac{1}{P_l}\sum_p \frac{\langle F_l(I)_p,\, F_l(J)_p\rangle}{\lVert F_l(I)_p\rVert\,\lVert F_l(J)_p\rVert}$ | what a frozen network sees, at $L = 3$ resolutions |
#
# The extractor of a DeepSim similarity comes from its own run ([notebook 2](02_feature_extractor.ipynb)). In the quick
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
# have nothing to do with each other, and comes down smoothly as the pair is aligned.
#
# ## The regulariser
#
# Diffusion: the mean of squared forward differences of $u$ over voxels, components and axes,
#
# $$R(u) = \operatorname{mean}\,\lVert\nabla u\rVert^2,$$
#
# zero for a translation, and larger the more neighbours disagree. λ says what a unit of it costs: the profile gives it, or
# [06_tuning](06_tuning.ipynb) chooses it on the validation pairs.

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
columns = ["train_loss", "validation_loss", "train_dice", "validation_dice", "validation_folds"]
figures.learning_curve(history, columns) if run.settings.fit.steps else "initial weights, not trained"

# %% [markdown]
# Labels play no part in these losses (but in `ncc-sup` and `ncc-dice`). That Dice rises all the same is the evidence that the similarity pulls anatomy
# onto anatomy and not just grey onto grey; where the loss falls and Dice does not, the network fits noise.
#
# ## A pair, before and after
#
# One pair of the test split. The contours are labels, which the network never sees; the grid shows where every voxel of
# the fixed image comes from; the last panel is the Jacobian determinant
#
# $$J(x) = \det\left(\mathrm{Id} + \nabla u(x)\right),$$
#
# 1 where volume is kept, and 0 or less where space is folded over itself, which no tissue does. (The code published with
# the paper took the absolute value of every finite difference and so missed most folds; this is the true determinant.)

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
print(f"|u| up to {displacement.norm(dim=1).max():.1f} voxels, J from {jacobian.min():.2f} to {jacobian.max():.2f}")

# %% [markdown]
# ## Validation
#
# All validation pairs, without and with the network. λ is chosen by this Dice; the test pairs wait for
# [notebook 4](04_evaluation.ipynb).

# %% tags=["nbval-ignore-output"]
columns = ["dice", "dice_foreground", "folds", "sd_log_jacobian", "target_registration_error"]
before = evaluate([Entry({}, None)], data, "validation")[columns].mean()
after = pd.read_csv(run.validation)[columns].mean()
before.to_frame("unregistered").assign(**{method: after}).T.round(4)

# %% [markdown]
# ## What to take away
#
# - Similarity and regulariser pull in opposite directions; λ is the exchange rate and has to be chosen for each $D$.
# - The displacement pulls: $\text{moved}(x) = \text{moving}(x + u(x))$, in voxels of the fixed image.
# - Dice without a look at the folds is half a result.
#
# Next: [04_evaluation](04_evaluation.ipynb) puts all methods side by side.

# %% tags=["nbval-ignore-output"]
best = ", ".join(f"{name} {value:.4g}" for name, value in run.result()["best"].items())
print(f"{run}: λ {run.result()['lam']:g}, best {best}")
