import torch

from nti import StableDiffusion
from nti.sampling.schedule import ddim_step
from nti.sampling.step import (
    AdamState,
    IterationInputs,
    IterationResult,
    guided_noise,
    null_text_iteration,
)
from tolerances import assert_close, relative_error

W, RATE, INDEX = 5.0, 1e-2, 3


class Problem:
    """One inner iteration of two images on the tiny model."""

    def __init__(self, model: StableDiffusion) -> None:
        g = torch.Generator().manual_seed(0)
        self.model = model
        self.schedule = model.schedule(10)
        self.step = self.schedule.coefficients(INDEX)
        self.latent, self.target = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64, generator=g)
        self.uncond = model.encode_text(["", ""])
        self.eps_cond = self.predict(model.encode_text(["a cat", "a dog"]))

    def predict(self, context: torch.Tensor) -> torch.Tensor:
        return self.model.steps.noise(
            self.latent, torch.tensor(self.schedule.timesteps[INDEX]), context
        )

    def losses(self, uncond: torch.Tensor) -> torch.Tensor:
        eps = guided_noise(self.predict(uncond), self.eps_cond, W)
        arrived = ddim_step(self.latent, eps, self.step)
        return (arrived - self.target).square().flatten(1).mean(dim=1)

    def iterate(
        self, uncond: torch.Tensor, adam: AdamState, active: torch.Tensor
    ) -> IterationResult:
        inputs = IterationInputs(
            uncond=uncond,
            adam=adam,
            active=active,
            latent=self.latent,
            timestep=self.schedule.timestep(INDEX, self.latent),
            eps_cond=self.eps_cond,
            target=self.target,
            coefficients=self.step,
            guidance_scale=self.latent.new_full((), W),
            learning_rate=self.latent.new_full((), RATE),
        )
        return null_text_iteration(self.model.steps.noise, inputs)


BOTH = torch.tensor([True, True])


def test_no_weight_can_learn(model: StableDiffusion) -> None:
    for network in (model.unet, model.vae, model.text):
        assert not any(p.requires_grad for p in network.parameters())


def test_iterations_are_torchs_adam_on_the_summed_loss(model: StableDiffusion) -> None:
    problem = Problem(model)
    learned = problem.uncond.clone().requires_grad_()
    optimizer = torch.optim.Adam([learned], lr=RATE)
    uncond, adam = problem.uncond, AdamState.fresh(problem.uncond)
    for _ in range(3):
        losses = problem.losses(learned)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        made = problem.iterate(uncond, adam, BOTH)
        uncond, adam = made.uncond, made.adam
        assert_close(made.losses, losses.detach())
    # Adam's first steps follow the gradient's sign, so tiny gradients amplify rounding.
    assert relative_error(uncond - problem.uncond, learned.detach() - problem.uncond) < 1e-6
    assert all(p.grad is None for p in model.unet.parameters())


def test_the_gradient_agrees_with_finite_differences(model: StableDiffusion) -> None:
    problem = Problem(model)
    fresh = AdamState.fresh(problem.uncond)
    gradient = problem.iterate(problem.uncond, fresh, BOTH).adam.mean / 0.1
    g = torch.Generator().manual_seed(5)
    for _ in range(3):
        direction = torch.randn(problem.uncond.shape, dtype=torch.float64, generator=g)
        h = 1e-6
        ahead, behind = (
            problem.losses(problem.uncond + s * h * direction).sum() for s in (1.0, -1.0)
        )
        slope = (ahead - behind) / (2 * h)
        # Central differences in float64 leave about sqrt(eps) of the loss over the slope.
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-9)


def test_an_image_that_has_stopped_keeps_embedding_moments_and_count(
    model: StableDiffusion,
) -> None:
    problem = Problem(model)
    first = problem.iterate(problem.uncond, AdamState.fresh(problem.uncond), BOTH)
    again = problem.iterate(first.uncond, first.adam, torch.tensor([True, False]))
    uncond, adam = again.uncond, again.adam
    assert torch.equal(uncond[1], first.uncond[1]) and not torch.equal(uncond[0], first.uncond[0])
    assert torch.equal(adam.mean[1], first.adam.mean[1])
    assert torch.equal(adam.square[1], first.adam.square[1])
    assert adam.count.tolist() == [2.0, 1.0]


def test_images_of_a_batch_do_not_touch_each_other(model: StableDiffusion) -> None:
    problem = Problem(model)
    both = problem.iterate(problem.uncond, AdamState.fresh(problem.uncond), BOTH).uncond
    for name in ("latent", "target", "eps_cond", "uncond"):
        setattr(problem, name, getattr(problem, name)[1:])
    alone = problem.iterate(problem.uncond, AdamState.fresh(problem.uncond), BOTH[1:]).uncond
    assert relative_error(both[1:] - problem.uncond, alone - problem.uncond) < 1e-6
