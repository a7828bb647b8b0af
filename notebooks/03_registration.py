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
similarity: str = "deepsim-seg"  # mse, ncc, deepsim-ae or deepsim-seg
lam: float = -1.0  # weight of the regulariser; negative: the profile's first
seed: int = 0  # of initial weights, samples and augmentation
steps: int = 0  # optimiser steps; 0: the profile's
extractor: str = ""  # run folder of the feature extractor; empty: the profile's
folder: str = ""  # of the run; empty: runs/<profile>/<dataset>/registration/<similarity>/lam-<λ>/seed-<s>

# %%
from deepsimreg.notebook import check_parameters

check_parameters(globals())

# %%
from dataclasses import replace

import torch

from deepsimreg import plots
from deepsimreg.experiment import Profile
from deepsimreg.losses import diffusion
from deepsimreg.stages import evaluate_method, similarity_of, train_registration
from deepsimreg.warps import jacobian_determinant, warp_image, warp_labels

changes = {"seed": seed} | ({"steps": steps} if steps else {})
settings = Profile(profile).registration(dataset, similarity, lam if lam >= 0 else None, **changes)
settings = replace(settings, extractor=extractor)
data = Profile(profile).load(dataset)
print(f"{settings.similarity}, λ = {settings.lam:g}")

# %% [markdown]
# ## The similarity
#
# | name | $D(I, J)$ | compares |
# |---|---|---|
# | `mse` | $\frac1P\sum_p (I_p - J_p)^2$ | grey values |
# | `ncc` | $1 - \frac1P\sum_p \frac{\mathrm{cov}_w(I, J)_p^2}{\mathrm{var}_w(I)_p\,\mathrm{var}_w(J)_p}$ | grey values in a window $w$, up to brightness and contrast |
# | `deepsim-…` | $1 - \frac1L\sum_l \frac{1}{P_l}\sum_p \frac{\langle F_l(I)_p,\, F_l(J)_p\rangle}{\lVert F_l(I)_p\rVert\,\lVert F_l(J)_p\rVert}$ | what a frozen network sees, at $L = 3$ resolutions |
#
# The extractor of a DeepSim similarity comes from its own run ([notebook 2](02_feature_extractor.ipynb)). In the quick
# profile it is trained here if it is missing.

# %% tags=["nbval-ignore-output"]
measure = similarity_of(settings, data)

# %%
pair = data.pairs("test")[0]
moving, fixed = pair.moving.image[None], pair.fixed.image[None]
shuffled = fixed.flip(-1)
print(f"fixed with itself        {measure(fixed, fixed).item():.2f}")

# %% tags=["nbval-ignore-output"]
print(f"moving with fixed        {measure(moving, fixed).item():.4f}")
print(f"mirrored with fixed      {measure(shuffled, fixed).item():.4f}")

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
# zero for a translation, and larger the more neighbours disagree. λ says what a unit of it costs.

# %%
shift = torch.full((1, data.ndim, *data.shape), 2.0)
print(f"R of a translation {diffusion(shift):.3f}, of random noise {diffusion(torch.randn_like(shift)):.1f}")

# %% [markdown]
# ## Training
#
# The paper's network predicts $u$ itself. The light profiles let it predict a stationary velocity $v$ instead and
# integrate it by scaling and squaring, $\Phi = \exp(v)$, which does not fold in the limit of small steps (Dalca et al.
# 2018). Batches are pairs of the training split; validation Dice decides which weights are kept.

# %% tags=["nbval-ignore-output"]
network, history, run = train_registration(settings, data, folder)

# %% tags=["nbval-ignore-output"]
columns = ["train_loss", "validation_loss", "train_dice", "validation_dice", "validation_folds"]
plots.learning_curve(history, columns)

# %% [markdown]
# Labels play no part in these losses. That Dice rises all the same is the evidence that the similarity pulls anatomy
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
plots.pair_before_after(
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
before = evaluate_method(None, data, split="validation")[columns].mean()
after = evaluate_method(network, data, split="validation")[columns].mean()
before.to_frame("unregistered").assign(**{settings.similarity: after}).T.round(4)

# %% [markdown]
# ## What to take away
#
# - Similarity and regulariser pull in opposite directions; λ is the exchange rate and has to be chosen for each $D$.
# - The displacement pulls: $\text{moved}(x) = \text{moving}(x + u(x))$, in voxels of the fixed image.
# - Dice without a look at the folds is half a result.
#
# Next: [04_evaluation](04_evaluation.ipynb) puts all methods side by side.

# %% tags=["nbval-ignore-output"]
run.finish(validation=after.dropna().round(6).to_dict())
print(run)
