"""Joint example selection written from the paper with numpy alone, in float64 and with whole matrices: the reference
of select.test.ts. argv: folder, rounds, super-batch, learner's D, reference's D, batch, chunks, gain, score. The folder
has raw little-endian files: learner.f32 and reference.f32, each (rounds, 2, B, D); uniforms.f64 (rounds, chunks, B);
scale.f64: learner's and reference's temperature and bias. Writes selected.i32 (rounds, batch)."""
import sys
import numpy as np

folder = sys.argv[1]
rounds, B, D_learner, D_reference, batch, chunks = (int(a) for a in sys.argv[2:8])
gain, score = float(sys.argv[8]), sys.argv[9]


def load(name, dtype, *shape):
    return np.fromfile(f"{folder}/{name}", dtype).reshape(shape)


scale = load("scale.f64", "<f8", 2, 2)
embedded = {
    "learner": load("learner.f32", "<f4", rounds, 2, B, D_learner).astype(np.float64),
    "reference": load("reference.f32", "<f4", rounds, 2, B, D_reference).astype(np.float64),
}
uniforms = load("uniforms.f64", "<f8", rounds, chunks, B)


def losses(round, name, t, b):
    x, y = embedded[name][round]
    sign = 2 * np.eye(B) - 1
    return np.logaddexp(0, -sign * (t * x @ y.T + b))


out = []
for round in range(rounds):
    S = np.zeros((B, B))
    if score != "easy-reference":
        S += losses(round, "learner", *scale[0])
    if score != "learner":
        S -= losses(round, "reference", *scale[1])
    both = S + S.T
    chosen = np.zeros(0, int)
    for c in range(chunks):
        g = np.diag(S) + both[:, chosen].sum(1)
        keys = gain * g - np.log(-np.log(uniforms[round, c]))
        keys[chosen] = -np.inf
        size = (c + 1) * batch // chunks - c * batch // chunks
        chosen = np.concatenate([chosen, np.sort(np.argsort(-keys, kind="stable")[:size])])
    out.append(chosen)
np.array(out, "<i4").tofile(f"{folder}/selected.i32")
