"""One call each of ops whose arguments and results take every form that the dispatcher has: on the stack, in vector
registers, optional, lists of all kinds, strings, scalars, tuples, out= and in-place. Prints a digest of the results."""
import hashlib
import sys

import torch
import torch.nn.functional as F


def layers(x, results):
    image = x[:48].reshape(1, 3, 4, 4)
    weight = torch.linspace(-1, 1, 2 * 3 * 3 * 3).reshape(2, 3, 3, 3).requires_grad_()
    y = F.conv2d(image, weight, stride=(1, 1), padding=1)
    y = F.batch_norm(y, torch.zeros(2), torch.ones(2), torch.ones(2), torch.zeros(2), True, 0.25, 1e-3)
    y = F.interpolate(y, scale_factor=2.0, mode="bilinear")
    y = F.max_pool2d(y, 2, return_indices=True)[0]
    y = F.layer_norm(y, (4,), eps=1e-4)
    y = F.gelu(y, approximate="tanh") + F.leaky_relu(y, 0.3) + F.elu(y, alpha=0.7)
    y = F.silu(y) + F.mish(y)  # ops made of others that have a kernel as well
    y = F.pad(y, (1, 2), value=0.5)
    y = F.group_norm(y, 2, eps=1e-6)
    y.square().mean().backward()
    results += [y.detach(), weight.grad]
    lstm = torch.nn.LSTM(4, 3, num_layers=2, bidirectional=True)
    for index, parameter in enumerate(lstm.parameters()):
        torch.nn.init.constant_(parameter, 0.01 * (index + 1))
    out, (h, c) = lstm(x[:24].reshape(2, 3, 4))
    out.sum().backward()
    results += [out.detach(), h.detach(), c.detach()]


def attention(x, results):
    q = x[:64].reshape(1, 2, 8, 4).clone().requires_grad_()
    y = F.scaled_dot_product_attention(q, q, q, dropout_p=0.0, is_causal=True, scale=0.4)
    y.sum().backward()
    results += [y.detach(), q.grad]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results.append((x[:16].reshape(4, 4) @ x[16:32].reshape(4, 4)).float())


def indexing(x, results):
    m = x.reshape(8, 8)
    rows, columns = torch.tensor([1, 2, 3]), torch.tensor([0, 5, 7])
    results += [m[rows, columns], m[:, columns], m[None, 2:6, ..., ::2], m[m > 0.5]]
    m = m.clone()
    m[rows, columns] = 3.5
    m.index_put_((rows, columns), torch.tensor(1.5), accumulate=True)
    results += [m, m.gather(1, columns.expand(8, 3)), m.scatter_reduce(0, torch.zeros(1, 8, dtype=torch.long), m[:1],
                                                                       "amax", include_self=False)]
    results += list(torch.split(m, [3, 5])) + list(m.chunk(3, 1)) + list(torch.unbind(m, 0))
    results += [torch.cat([m, m], 1), torch.stack((m, m)), torch.where(m > 0, m, -m), m.roll((1, 2), (0, 1))]
    results += [torch.nonzero(m), F.embedding(rows, m, padding_idx=2), torch.repeat_interleave(m, 2, dim=0)]
    results.append(torch.searchsorted(torch.tensor([0.1, 0.4, 0.9]), m.contiguous(), right=True, side="right"))


def reductions(x, results):
    m = x.reshape(8, 8)
    results += [m.sum((0, 1), keepdim=True), m.var(1, correction=0), m.std(), m.norm(3, dim=1), m.mean(dtype=torch.double)]
    results += list(m.max(1)) + list(m.topk(3, dim=0, largest=False)) + list(torch.var_mean(m, dim=[0])) + [m.argmax()]
    values, indices = torch.empty(8), torch.empty(8, dtype=torch.long)
    torch.max(m, 1, out=(values, indices))
    results += [values, indices, torch.add(m, m, alpha=2, out=torch.empty(8, 8)), m.quantile(0.3), m.cumsum(0)]
    results += list(torch.unique(m.round(), return_inverse=True, return_counts=True)) + [m.histc(4, min=-1, max=1)]
    results += list(torch.linalg.svd(m)) + [torch.linalg.matrix_norm(m, "nuc"), torch.einsum("ij,kj->ik", m, m)]
    results += [m.clamp(-0.5, 0.5), m.clamp(min=0.1), torch.nan_to_num(m / 0, nan=1.0, posinf=2.0), m.isclose(m)]
    results += [torch.bucketize(m, torch.tensor([0.0, 0.5])), m.allclose(m), m.dist(m + 1), m.logsumexp([0, 1])]


def elementwise(x, results):
    results += [x + 1, x * True, x - 2.5, 3 / x.abs().add(1), x ** 2, 2 ** x, x.to(torch.int32) // 3, x.bool() & True]
    results += [torch.complex(x, x) * (1 + 2j), torch.fft.rfft(x), x.lerp(x + 1, 0.25), torch.addcmul(x, x, x, value=0.1)]
    results += [x.to(torch.bfloat16), x.double().floor_divide(0.3), x.to("cpu", torch.half), x.remainder(0.7)]
    results += [torch.arange(0, 5, 0.5), torch.full((2, 3), 7), torch.eye(3), torch.zeros(2, 3, dtype=torch.long)]
    image = torch.empty(1, 3, 4, 4).fill_(2).to(memory_format=torch.channels_last)
    results += [image, torch.empty_like(image, memory_format=torch.preserve_format).copy_(image), image.contiguous()]
    y = x.clone()
    results += [y.add_(1).mul_(2).clamp_(-1, 1).sub_(x).div_(2).relu_(), y.fill_(3), y.zero_(), y.copy_(x)]
    results += [x.reshape(2, 2, 2, 2, 2, 2).permute(5, 4, 3, 2, 1, 0).contiguous(), x.reshape([2] * 6).flatten(1, 4)]


def random_numbers(x, results):
    generator = torch.Generator().manual_seed(7)
    results += [torch.rand(4, generator=generator), torch.bernoulli(torch.full((4,), 0.5), generator=generator)]
    results += [torch.randn(3), F.dropout(x, 0.25), torch.randperm(5), torch.empty(4).uniform_(-1, 1), torch.normal(x, 0.1)]
    results += [torch.multinomial(torch.ones(4), 2), torch.empty(3).exponential_(2.0), torch.randint(3, 9, (4,))]


def optimizers(x, results):
    for make in (lambda p: torch.optim.AdamW(p, foreach=True), lambda p: torch.optim.Adam(p, fused=True, amsgrad=True),
                 lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
                 lambda p: torch.optim.Adagrad(p), lambda p: torch.optim.RMSprop(p, centered=True)):
        parameters = [x[:4].clone().requires_grad_(), x[4:10].reshape(2, 3).clone().requires_grad_()]
        optimizer = make(parameters)
        for _ in range(2):
            optimizer.zero_grad()
            sum(p.square().sum() for p in parameters).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
        results += [p.detach() for p in parameters]


def main(seed=0):
    torch.manual_seed(seed)
    x = torch.linspace(-1, 1, 64)
    results = []
    for part in (layers, attention, indexing, reductions, elementwise, random_numbers, optimizers):
        part(x, results)
    with torch.inference_mode():
        elementwise(x, results)
    with torch.no_grad():
        indexing(x, results)
    digest = hashlib.sha256()
    for result in results:
        digest.update(repr(result.tolist() if isinstance(result, torch.Tensor) else result).encode())
    print(len(results), digest.hexdigest())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
