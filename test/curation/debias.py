"""The quadratic programme of de-biasing solved over label patterns with scipy's SLSQP: the reference of debias.test.ts.
Reads JSON from stdin: counts (patterns), rows (constraints, patterns) of A in A q <= 0, keep. Prints q of each pattern."""
import json
import sys
import numpy as np
from scipy.optimize import minimize

problem = json.load(sys.stdin)
w = np.asarray(problem["counts"], float)
w /= w.sum()
A = np.asarray(problem["rows"], float) * w
keep = problem["keep"]
result = minimize(
    lambda q: 0.5 * np.sum(w * (q - keep) ** 2), np.full(len(w), keep), jac=lambda q: w * (q - keep),
    bounds=[(0, 1)] * len(w), method="SLSQP", options={"ftol": 1e-14, "maxiter": 2000},
    constraints=[{"type": "eq", "fun": lambda q: w @ q - keep, "jac": lambda q: w},
                 {"type": "ineq", "fun": lambda q: -A @ q, "jac": lambda q: -A}])
assert result.success, result.message
json.dump(list(result.x), sys.stdout)
