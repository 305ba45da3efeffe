"""Slow, literal forms of the hypergradient, written from the paper's equations alone.

Nothing here calls the library's rules: quantization, straight-through estimator and losses are
written out again, and derivatives are reverse mode through the step or plain differences.
"""

import torch
from problems import Problem
from torch import Tensor
from torch.func import functional_call

Tensors = list[Tensor]


def weights(problem: Problem) -> tuple[Tensors, Tensors, Tensor]:
    """(φ, θ, C) as leaves."""
    network = problem.network
    return (
        [p.detach().clone().requires_grad_() for p in network.encoder.parameters()],
        [p.detach().clone().requires_grad_() for p in network.decoder.parameters()],
        network.quantizer.codebook.weight.detach().clone().requires_grad_(),
    )


def _call(module: torch.nn.Module, parameters: Tensors, x: Tensor) -> Tensor:
    names = [name for name, _ in module.named_parameters()]
    return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))


def embed(problem: Problem, phi: Tensors) -> Tensor:
    z = _call(problem.network.encoder, phi, problem.x)
    return z.movedim(1, -1).contiguous() if z.ndim == 4 else z


def decode(problem: Problem, theta: Tensors, z: Tensor) -> Tensor:
    return _call(problem.network.decoder, theta, z.movedim(-1, 1) if z.ndim == 4 else z)


def rows_of(problem: Problem, z_e: Tensor, codebook: Tensor) -> Tensor:
    """For every part of an embedding the row of the table it selects, (..., G)."""
    quantizer = problem.network.quantizer
    groups, width = quantizer.groups, quantizer.dim // quantizer.groups
    parts = z_e.detach().reshape(*z_e.shape[:-1], groups, width)
    rows = torch.empty(parts.shape[:-1], dtype=torch.int64)
    for g in range(groups):
        offset = 0 if quantizer.shared_codebook else g * quantizer.num_codes
        book = codebook.detach()[offset : offset + quantizer.num_codes]
        distances = (parts[..., g, None, :] - book).square().sum(-1)
        rows[..., g] = distances.argmin(-1) + offset
    return rows


def select(codebook: Tensor, rows: Tensor) -> Tensor:
    return codebook[rows].flatten(-2)


def terms(
    problem: Problem, phi: Tensors, theta: Tensors, codebook: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(task, commitment, codebook) losses of Eq. 6 with every stop-gradient of the paper."""
    z_e = embed(problem, phi)
    z_q = select(codebook, rows_of(problem, z_e, codebook) if rows is None else rows)
    task = problem.loss(decode(problem, theta, z_e + (z_q - z_e).detach()), problem.y)
    commitment = (z_e - z_q.detach()).square().mean()
    return task, commitment, (z_e.detach() - z_q).square().mean()


def total(problem: Problem, *args: object) -> Tensor:
    task, commitment, codebook = terms(problem, *args)  # type: ignore[arg-type]
    return task + problem.beta * commitment + problem.codebook_weight * codebook


def gradients(problem: Problem, phi: Tensors, theta: Tensors, codebook: Tensor, rows=None):
    """(g_φ, g_θ, g_C)."""
    found = torch.autograd.grad(
        total(problem, phi, theta, codebook, rows), [*phi, *theta, codebook]
    )
    return list(found[: len(phi)]), list(found[len(phi) : -1]), found[-1]


def update_field(
    problem: Problem, phi: Tensors, theta: Tensors, codebook: Tensor, rows: Tensor
) -> tuple[Tensors, Tensors]:
    """(g_φ, g_θ) as a differentiable function of C: the values of ẑ and of sg(z_q) are C's."""
    z_e = embed(problem, phi)
    z_q = select(codebook, rows)
    task = problem.loss(decode(problem, theta, z_q + z_e - z_e.detach()), problem.y)
    scalar = task + problem.beta * (z_e - z_q).square().mean()
    found = torch.autograd.grad(scalar, [*phi, *theta], create_graph=True)
    return list(found[: len(phi)]), list(found[len(phi) :])


def ahead(tensors: Tensors, directions: Tensors, scale: float) -> Tensors:
    return [(t + scale * d).detach().requires_grad_() for t, d in zip(tensors, directions)]


def look_ahead(problem: Problem, xi: float) -> tuple[Tensors, Tensors]:
    """(φ', θ') after the virtual step."""
    phi, theta, codebook = weights(problem)
    g_phi, g_theta, _ = gradients(problem, phi, theta, codebook)
    return ahead(phi, g_phi, -xi), ahead(theta, g_theta, -xi)


def above(problem: Problem, xi: float) -> tuple[Tensors, Tensors, Tensor]:
    """(v_φ, v_θ, direct) at (φ', θ', C)."""
    return gradients(problem, *look_ahead(problem, xi), weights(problem)[2])


def reverse_mode(problem: Problem, xi: float) -> Tensor:
    """The indirect term of Eq. 14, by reverse mode through the straight-through step."""
    v_phi, v_theta, _ = above(problem, xi)
    phi, theta, codebook = weights(problem)
    rows = rows_of(problem, embed(problem, phi), codebook)
    g_phi, g_theta = update_field(problem, phi, theta, codebook, rows)
    reached = sum(
        ((p - xi * g) * v).sum()
        for p, g, v in zip([*phi, *theta], [*g_phi, *g_theta], [*v_phi, *v_theta])
    )
    return torch.autograd.grad(reached, codebook)[0]


def numeric(problem: Problem, xi: float, h: float = 1e-4) -> Tensor:
    """The same by differences in every number of C: v · (φ'(C), θ'(C)), codes frozen."""
    v_phi, v_theta, _ = above(problem, xi)
    phi, theta, codebook = weights(problem)
    rows = rows_of(problem, embed(problem, phi), codebook)

    def reached(table: Tensor) -> float:
        # First derivatives only, with the value of sg(z_q) and ẑ set by the displaced table.
        g_phi, g_theta, _ = gradients(problem, phi, theta, table.requires_grad_(), rows)
        moved = [
            ((p - xi * g) * v).sum()
            for p, g, v in zip([*phi, *theta], [*g_phi, *g_theta], [*v_phi, *v_theta])
        ]
        return sum(moved).item()

    result = torch.zeros_like(codebook)
    for i in range(codebook.numel()):
        shift = torch.zeros_like(codebook).flatten()
        shift[i] = h
        shift = shift.view_as(codebook)
        base = codebook.detach()
        # Fourth order, so that what is left is rounding.
        slope = 8 * (reached(base + shift) - reached(base - shift))
        slope -= reached(base + 2 * shift) - reached(base - 2 * shift)
        result.view(-1)[i] = slope / (12 * h)
    return result


def paper_closed_form(problem: Problem, xi: float) -> Tensor:
    """+ξ (2w/ND) scatter_k(δ), δ from the encoder's whole Jacobian."""
    v_phi, _, _ = above(problem, xi)
    phi, _, codebook = weights(problem)
    z_e = embed(problem, phi)
    delta = torch.zeros(z_e.shape, dtype=z_e.dtype)
    for i in range(z_e.numel()):
        row = torch.autograd.grad(z_e.reshape(-1)[i], phi, retain_graph=True)
        delta.view(-1)[i] = sum((j * v).sum() for j, v in zip(row, v_phi))
    rows = rows_of(problem, z_e, codebook)
    width = codebook.shape[1]
    scattered = torch.zeros_like(codebook)
    for row, part in zip(rows.flatten().tolist(), delta.detach().reshape(-1, width)):
        scattered[row] += part
    return xi * 2 * problem.codebook_weight / z_e.numel() * scattered


def paper_difference(
    problem: Problem, xi: float, epsilon: float, *, frozen: bool
) -> tuple[Tensor, Tensor]:
    """Eq. 13 with whole passes: the encoder's share and the decoder's share."""
    v_phi, v_theta, _ = above(problem, xi)
    phi, theta, codebook = weights(problem)
    rows = rows_of(problem, embed(problem, phi), codebook) if frozen else None

    def g_c(phi: Tensors, theta: Tensors) -> Tensor:
        return gradients(problem, phi, theta, codebook, rows)[2]

    plus, minus = ahead(phi, v_phi, epsilon), ahead(phi, v_phi, -epsilon)
    of_encoder = -xi * (g_c(plus, theta) - g_c(minus, theta)) / (2 * epsilon)
    plus, minus = ahead(theta, v_theta, epsilon), ahead(theta, v_theta, -epsilon)
    of_decoder = -xi * (g_c(phi, plus) - g_c(phi, minus)) / (2 * epsilon)
    return of_encoder, of_decoder


def stopped(problem: Problem, xi: float) -> Tensor:
    """dL'/dC with the gradient stopped between unrolled steps (Appendix F)."""
    phi, theta = look_ahead(problem, xi)
    codebook = weights(problem)[2]
    loss = total(problem, [p.detach() for p in phi], [t.detach() for t in theta], codebook)
    return torch.autograd.grad(loss, codebook)[0]
