"""Slow, literal forms of the hypergradient, written from the paper's equations alone.

Nothing here calls the library's rules: quantization, straight-through estimator and losses are
written out again, and derivatives are reverse mode through the step or plain differences.
"""

import torch
from problems import Problem
from torch import Tensor
from torch.func import functional_call

from mqvae import Affine, Cosine, HyperNetwork, LinearMap, ResidualQuantizer, Rotation

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


def above(
    problem: Problem, xi: float, upper: Problem | None = None
) -> tuple[Tensors, Tensors, Tensor]:
    """(v_φ, v_θ, direct) at (φ', θ', C), of the upper level's own batch and loss if it has any."""
    return gradients(upper or problem, *look_ahead(problem, xi), weights(problem)[2])


def reverse_mode(problem: Problem, xi: float, upper: Problem | None = None) -> Tensor:
    """The indirect term of Eq. 14, by reverse mode through the straight-through step."""
    v_phi, v_theta, _ = above(problem, xi, upper)
    phi, theta, codebook = weights(problem)
    rows = rows_of(problem, embed(problem, phi), codebook)
    g_phi, g_theta = update_field(problem, phi, theta, codebook, rows)
    reached = sum(
        ((p - xi * g) * v).sum()
        for p, g, v in zip([*phi, *theta], [*g_phi, *g_theta], [*v_phi, *v_theta])
    )
    return torch.autograd.grad(reached, codebook)[0]


def numeric(problem: Problem, xi: float, h: float = 1e-4, upper: Problem | None = None) -> Tensor:
    """The same by differences in every number of C: v · (φ'(C), θ'(C)), codes frozen."""
    v_phi, v_theta, _ = above(problem, xi, upper)
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


def paper_closed_form(problem: Problem, xi: float, upper: Problem | None = None) -> Tensor:
    """+ξ (2w/ND) scatter_k(δ), δ from the encoder's whole Jacobian."""
    v_phi, _, _ = above(problem, xi, upper)
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


# -- any codebook: a function of parameters, compared on a sphere, in stages, or turned ------------
#
# The same once more with the table of codewords C(p), (rows, d), as the variable, and embeddings
# placed where they are compared with it. `p` maps the names of the codebook's parameters to them.

Named = dict[str, Tensor]


def network_weights(problem: Problem) -> tuple[Tensors, Tensors]:
    """(φ, θ) as leaves."""
    network = problem.network
    return (
        [p.detach().clone().requires_grad_() for p in network.encoder.parameters()],
        [p.detach().clone().requires_grad_() for p in network.decoder.parameters()],
    )


def codebook_parameters(problem: Problem) -> Named:
    named = problem.network.quantizer.named_parameters()
    return {name: p.detach().clone().requires_grad_() for name, p in named}


def table_of(problem: Problem, parameters: Named) -> Tensor:
    """C(p)."""
    quantizer = problem.network.quantizer
    if isinstance(quantizer, ResidualQuantizer):
        stages = [(f"stages.{i}.", stage) for i, stage in enumerate(quantizer.stages)]
    else:
        stages = [("", quantizer)]
    tables = []
    for prefix, stage in stages:
        p = {k.removeprefix(prefix + "codebook."): v for k, v in parameters.items() if prefix in k}
        if isinstance(stage.codebook, Affine):
            rows = [p["mean"] + p["scale"] * row for row in p["weight"]]
        elif isinstance(stage.codebook, LinearMap):
            rows = [p["weight"].T @ row for row in stage.codebook.table]
        elif isinstance(stage.codebook, HyperNetwork):
            hidden = [torch.tanh(p["hidden.weight"] @ e + p["hidden.bias"]) for e in p["embedding"]]
            rows = [
                base + p["out.weight"] @ h + p["out.bias"]
                for base, h in zip(stage.codebook.base, hidden)
            ]
        else:
            rows = list(p["weight"])
        if isinstance(stage.distance, Cosine):
            rows = [row / row.square().sum().sqrt() for row in rows]
        tables.append(torch.stack(rows))
    return torch.cat(tables)


def placed(problem: Problem, phi: Tensors) -> Tensor:
    """z_e where it is compared with codewords."""
    z_e = embed(problem, phi)
    quantizer = problem.network.quantizer
    if isinstance(getattr(quantizer, "distance", None), Cosine):
        parts = z_e.unflatten(-1, (quantizer.groups, -1))
        return (parts / parts.square().sum(-1, keepdim=True).sqrt()).flatten(-2)
    return z_e


def selected_rows(problem: Problem, z_e: Tensor, table: Tensor) -> Tensor:
    """Rows of the table that embeddings select, (..., G or stages)."""
    quantizer = problem.network.quantizer
    if not isinstance(quantizer, ResidualQuantizer):
        return rows_of(problem, z_e, table)
    left, rows = z_e.detach().clone(), []
    for s in range(len(quantizer.stages)):
        book = table.detach()[s * quantizer.num_codes : (s + 1) * quantizer.num_codes]
        rows.append((left[..., None, :] - book).square().sum(-1).argmin(-1))
        left = left - book[rows[-1]]
        rows[-1] = rows[-1] + s * quantizer.num_codes
    return torch.stack(rows, -1)


def selected(problem: Problem, table: Tensor, rows: Tensor) -> Tensor:
    """z_q."""
    if isinstance(problem.network.quantizer, ResidualQuantizer):
        return sum(table[rows[..., s]] for s in range(rows.shape[-1]))
    return select(table, rows)


def codebook_loss(
    problem: Problem, z_e: Tensor, table: Tensor, rows: Tensor, stopped: Tensor | None = None
) -> Tensor:
    """Eq. 5, or its sum over stages, each on what the stages before left over.

    What is left over has its gradient stopped: it is that of the table `stopped`, if given.
    """
    return _codebook_loss(
        problem, z_e.detach(), table, rows, table.detach() if stopped is None else stopped
    )


def _codebook_loss(
    problem: Problem, z_e: Tensor, table: Tensor, rows: Tensor, stopped: Tensor
) -> Tensor:
    if not isinstance(problem.network.quantizer, ResidualQuantizer):
        return (z_e - select(table, rows)).square().mean()
    loss, left = 0.0, z_e
    for s in range(rows.shape[-1]):
        loss = loss + (left - table[rows[..., s]]).square().mean()
        left = left - stopped[rows[..., s]]
    return loss


def rotation_matrix(start: Tensor, end: Tensor) -> Tensor:
    """The rotation of start's direction to end's in their plane, and of nothing else, (D, D)."""
    p, q = start / start.norm(), end / end.norm()
    cosine = p @ q
    across = q - cosine * p
    across = across / across.norm()
    sine = q @ across
    turn = torch.outer(across, p) - torch.outer(p, across)
    plane = torch.outer(p, p) + torch.outer(across, across)
    return torch.eye(len(p), dtype=p.dtype) + sine * turn + (cosine - 1) * plane


def estimate(problem: Problem, z_e: Tensor, z_q: Tensor) -> Tensor:
    """ẑ."""
    if not isinstance(problem.network.quantizer.estimator, Rotation):
        return z_e + (z_q - z_e).detach()
    dim = z_e.shape[-1]
    turned = []
    for z, e in zip(z_e.reshape(-1, dim), z_q.detach().reshape(-1, dim)):
        scale = e.norm() / z.detach().norm()
        turned.append(scale * rotation_matrix(z.detach(), e) @ z)
    return torch.stack(turned).view_as(z_e)


def losses_at(
    problem: Problem, phi: Tensors, theta: Tensors, table: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(task, commitment, codebook) losses with the table as the variable."""
    z_e = placed(problem, phi)
    rows = selected_rows(problem, z_e, table) if rows is None else rows
    z_q = selected(problem, table, rows)
    task = problem.loss(decode(problem, theta, estimate(problem, z_e, z_q)), problem.y)
    commitment = (z_e - z_q.detach()).square().mean()
    return task, commitment, codebook_loss(problem, z_e, table, rows)


def gradients_at(problem: Problem, phi: Tensors, theta: Tensors, table: Tensor, rows=None):
    """(g_φ, g_θ, g_C), detached."""
    table = table.detach().requires_grad_()
    task, commitment, codebook = losses_at(problem, phi, theta, table, rows)
    loss = task + problem.beta * commitment + problem.codebook_weight * codebook
    found = torch.autograd.grad(loss, [*phi, *theta, table])
    return list(found[: len(phi)]), list(found[len(phi) : -1]), found[-1]


def above_at(problem: Problem, xi: float) -> tuple[Tensors, Tensors, Tensor]:
    """(v_φ, v_θ, direct term by the table) at (φ', θ', C)."""
    phi, theta = network_weights(problem)
    table = table_of(problem, codebook_parameters(problem))
    g_phi, g_theta, _ = gradients_at(problem, phi, theta, table)
    return gradients_at(problem, ahead(phi, g_phi, -xi), ahead(theta, g_theta, -xi), table)


def through(problem: Problem, of_table: Tensor) -> Named:
    """A gradient by the table as gradients by the codebook's parameters: the chain rule."""
    parameters = codebook_parameters(problem)
    found = torch.autograd.grad(table_of(problem, parameters), list(parameters.values()), of_table)
    return dict(zip(parameters, found))


def reverse_mode_at(problem: Problem, xi: float) -> Named:
    """The indirect term of Eq. 14 by the codebook's parameters, by reverse mode from end to end."""
    v_phi, v_theta, _ = above_at(problem, xi)
    phi, theta = network_weights(problem)
    parameters = codebook_parameters(problem)
    table = table_of(problem, parameters)
    z_e = placed(problem, phi)
    z_q = selected(problem, table, selected_rows(problem, z_e, table))
    task = problem.loss(decode(problem, theta, z_q + z_e - z_e.detach()), problem.y)
    scalar = task + problem.beta * (z_e - z_q).square().mean()
    found = torch.autograd.grad(scalar, [*phi, *theta], create_graph=True)
    reached = sum(
        ((p - xi * g) * v).sum() for p, g, v in zip([*phi, *theta], found, [*v_phi, *v_theta])
    )
    return dict(zip(parameters, torch.autograd.grad(reached, list(parameters.values()))))


def slopes_of(function, parameters: Named, h: float = 1e-4) -> Named:
    """Derivatives of function(parameters) → float by every number, of fourth order."""
    result = {}
    for name, value in parameters.items():
        slope = torch.zeros_like(value)
        for i in range(value.numel()):

            def at(distance: float, name=name, value=value, i=i) -> float:
                shifted = value.detach().clone()
                shifted.view(-1)[i] += distance
                return function({**parameters, name: shifted})

            slope.view(-1)[i] = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        result[name] = slope
    return result


def numeric_at(problem: Problem, xi: float, steps: int = 1) -> tuple[Named, Named]:
    """(direct, indirect) for k virtual steps, by differences in every parameter of the codebook.

    Indirect: of v · (φ_k, θ_k)(C), v fixed, the codes of each step those of the undisplaced one.
    Direct: of the codebook loss at (φ_k, θ_k), codes frozen too.
    """
    parameters = codebook_parameters(problem)
    table = table_of(problem, parameters).detach()

    def run(table: Tensor, frozen: list[Tensor] | None) -> tuple[Tensors, Tensors, list[Tensor]]:
        phi, theta = network_weights(problem)
        seen = []
        for step in range(steps):
            rows = (
                selected_rows(problem, placed(problem, phi), table)
                if frozen is None
                else frozen[step]
            )
            seen.append(rows)
            # First derivatives only; ẑ and sg(z_q) have the displaced table's values.
            g_phi, g_theta, _ = gradients_at(problem, phi, theta, table, rows)
            phi, theta = ahead(phi, g_phi, -xi), ahead(theta, g_theta, -xi)
        return phi, theta, seen

    phi, theta, codes = run(table, None)
    v_phi, v_theta, _ = gradients_at(problem, phi, theta, table)
    rows = selected_rows(problem, placed(problem, phi), table)
    z_e = placed(problem, phi).detach()

    def reached(displaced: Named) -> float:
        ends = run(table_of(problem, displaced).detach(), codes)[:2]
        pairs = zip([*ends[0], *ends[1]], [*v_phi, *v_theta])
        return sum((end * v).sum() for end, v in pairs).item()

    def loss(displaced: Named) -> float:
        moved = table_of(problem, displaced).detach()
        return problem.codebook_weight * codebook_loss(problem, z_e, moved, rows, table).item()

    return slopes_of(loss, parameters), slopes_of(reached, parameters)


def paper_difference_at(problem: Problem, xi: float, epsilon: float) -> Named:
    """Eq. 13 by the codebook's parameters: whole passes at φ ± εv_φ and ± 2εv_φ, codes frozen."""
    v_phi, _, _ = above_at(problem, xi)
    phi, theta = network_weights(problem)
    table = table_of(problem, codebook_parameters(problem)).detach()
    rows = selected_rows(problem, placed(problem, phi), table)

    def g_c(distance: float) -> list[Tensor]:
        parameters = codebook_parameters(problem)
        table = table_of(problem, parameters)
        codebook = losses_at(problem, ahead(phi, v_phi, distance), theta, table, rows)[2]
        weighted = problem.codebook_weight * codebook
        return list(torch.autograd.grad(weighted, list(parameters.values())))

    points = [g_c(k * epsilon) for k in (1, -1, 2, -2)]
    slopes = [(8 * (a - b) - (c - d)) / (12 * epsilon) for a, b, c, d in zip(*points)]
    return {name: -xi * slope for name, slope in zip(codebook_parameters(problem), slopes)}


def virtual_table(problem: Problem, z_e: Tensor, table: Tensor, rows: Tensor, xi: float) -> Tensor:
    """C' = C − ξ g_C(φ, C) as a differentiable function of embeddings: nothing is stopped here."""
    table = table.detach().requires_grad_()
    loss = problem.codebook_weight * _codebook_loss(problem, z_e, table, rows, table.detach())
    return table - xi * torch.autograd.grad(loss, table, create_graph=True)[0]


def network_reverse_mode(problem: Problem, xi: float) -> tuple[Tensors, Tensors]:
    """dL(φ, θ, C'(φ))/d(φ, θ) by reverse mode through the virtual step of the codebook."""
    phi, theta = network_weights(problem)
    table = table_of(problem, codebook_parameters(problem)).detach()
    z_e = placed(problem, phi)
    table_ahead = virtual_table(problem, z_e, table, selected_rows(problem, z_e, table), xi)
    task, commitment, codebook = losses_at(problem, phi, theta, table_ahead)
    total = task + problem.beta * commitment + problem.codebook_weight * codebook
    found = torch.autograd.grad(total, [*phi, *theta])
    return list(found[: len(phi)]), list(found[len(phi) :])


def tangent(problem: Problem, v_phi: Tensors) -> Tensor:
    """δ = J_φ z_e · v_φ, from the encoder's whole Jacobian."""
    phi, _ = network_weights(problem)
    z_e = placed(problem, phi)
    delta = torch.zeros(z_e.numel(), dtype=z_e.dtype)
    for i in range(z_e.numel()):
        row = torch.autograd.grad(z_e.reshape(-1)[i], phi, retain_graph=True)
        delta[i] = sum((j * v).sum() for j, v in zip(row, v_phi))
    return delta.view_as(z_e)


def scattered(problem: Problem, rows: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """Sum of values by the row that selected them, one part after the other."""
    result = torch.zeros_like(table)
    if isinstance(problem.network.quantizer, ResidualQuantizer):
        values = values.unsqueeze(-2).expand(*rows.shape, -1)  # each stage gets the whole
    width = table.shape[1]
    for row, part in zip(rows.flatten().tolist(), values.reshape(-1, width)):
        result[row] += part
    return result
