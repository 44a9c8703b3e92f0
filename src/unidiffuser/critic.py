"""The critic of a student: a denoiser of the student's own law, and a judge of real against made samples.

    F(x_t, t)  clean estimate under the student's law, learnt by denoising what the student draws
    l(x_t, t)  logit, learnt by telling noised data from noised samples: its optimum is log q_t(x_t) / p_t(x_t)

Both are read from the features of one network, which begins as the teacher. Several distributions share it: which one a
noisy joint belongs to is said by its timesteps, given 0, ignored 1, sampled between, so no further label is needed.

It knows networks and timesteps, no optimiser and no data.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from unidiffuser.denoiser import clean_estimate
from unidiffuser.joint import Joint
from unidiffuser.networks import Network
from unidiffuser.process import Prediction, Process


class Critic(nn.Module):
    """A network and a head on its features, which begins with the logit 0: nothing is known of the ratio yet."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        d = network.config.dim
        last = nn.Linear(d, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.GELU(), last)

    def forward(self, xt: Joint, t: Mapping[str, Tensor]) -> tuple[Joint, Tensor]:
        """The network's raw outputs, and the logit (B,): the mean over tokens of what the head makes of each."""
        features = self.network.features(xt, t)
        return self.network.read_out(features, xt), self.head(features).flatten(1).mean(1)


class FrozenCritic:
    """A critic whose weights take no gradient while its inputs do."""

    def __init__(self, critic: Critic, process: Process, prediction: Prediction) -> None:
        self.critic, self.process, self.prediction = critic, process, prediction
        self.weights = {name: p.detach() for name, p in critic.named_parameters()}

    def __call__(self, xt: Joint, t: Mapping[str, Tensor]) -> tuple[Joint, Tensor]:
        """F(x_t) and the logit."""
        output, logit = functional_call(self.critic, self.weights, (xt, t))
        return clean_estimate(self.process, self.prediction, output, xt, t), logit.float()


def judging_loss(real: Tensor, made: Tensor) -> Tensor:
    """The cross-entropy of logits (B,) of real and of made samples, halved: log 2 where they cannot be told apart."""
    return 0.5 * (softplus(-real).mean() + softplus(made).mean())


def adversarial_loss(made: Tensor) -> Tensor:
    """log(1 + 1 / r) of logits of made samples, (B,): small where they pass for real (non-saturating)."""
    return softplus(-made)


def accuracy(real: Tensor, made: Tensor) -> Tensor:
    """The share of logits on the right side of 0; one half where samples cannot be told from data."""
    return 0.5 * ((real > 0).float().mean() + (made < 0).float().mean())
