"""The mixers of the gallery token by token in NumPy, from the equations of their papers.

Each function of REFERENCES takes a mixer's parameters as float64, one sequence x_TD and the number of heads, and
returns y_TD. Nothing here is shared with the mixers but the names of their parameters.
"""

import math

import numpy as np


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def silu(x):
  return x * sigmoid(x)


def softplus(x):
  return np.log1p(np.exp(x))


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


def unit(k):
  return k / math.sqrt(k @ k + 1e-6)


def root_mean_square(o):
  return o / np.sqrt(np.mean(o * o) + 1e-5)


def dense(p, name, x):
  return x @ p[name]['kernel'] + p[name].get('bias', 0.0)


def filtered(x_TD, taps_WD):
  """The last tap meets the present token."""
  W = len(taps_WD)
  return np.array([sum(taps_WD[W - 1 - age] * x_TD[t - age] for age in range(min(W, t + 1))) for t in range(len(x_TD))])


def projected(p, name, x_TD, bias=0.0):
  return silu(filtered(dense(p, name, x_TD), p[f'{name}_taps']) + bias)


def normalised(p, o_THV):
  """Every head of every token by itself, one scale for all heads."""
  return np.array([[root_mean_square(o_V) * p['norm']['scale'] for o_V in o_HV] for o_HV in o_THV])


def merged(o_THV):
  return o_THV.reshape(len(o_THV), -1)


def mamba2(p, x_TD, H):
  T, D = x_TD.shape
  u_THV = projected(p, 'value', x_TD, p['value_bias']).reshape(T, H, -1)
  key_TK, query_TK = (projected(p, name, x_TD, p[f'{name}_bias']) for name in ('key', 'query'))
  y_THV = np.zeros_like(u_THV)
  for h in range(H):
    state_KV = np.zeros((D // H, 2 * D // H))
    for t in range(T):
      step = softplus(dense(p, 'step', x_TD[t])[h] + p['step_bias'][h])
      state_KV = math.exp(-step * math.exp(p['log_rate'][h])) * state_KV + step * np.outer(key_TK[t], u_THV[t, h])
      y_THV[t, h] = query_TK[t] @ state_KV + p['skip'][h] * u_THV[t, h]
  gated_TV = merged(y_THV) * silu(dense(p, 'gate', x_TD))
  return dense(p, 'output', np.array([root_mean_square(y_V) * p['norm']['scale'] for y_V in gated_TV]))


def gla(p, x_TD, H):
  T, D = x_TD.shape
  K = D // H // 2
  q_THK, k_THK, v_THV = (dense(p, name, x_TD).reshape(T, H, -1) for name in ('query', 'key', 'value'))
  alpha_THK = sigmoid(dense(p, 'decay_up', dense(p, 'decay_down', x_TD))).reshape(T, H, K) ** (1 / 16)
  o_THV = np.zeros_like(v_THV)
  for h in range(H):
    state_KV = np.zeros((K, D // H))
    for t in range(T):
      state_KV = alpha_THK[t, h][:, None] * state_KV + np.outer(k_THK[t, h], v_THV[t, h])
      o_THV[t, h] = q_THK[t, h] @ state_KV / math.sqrt(K)
  return dense(p, 'output', merged(normalised(p, o_THV)) * silu(dense(p, 'gate', x_TD)))


def retnet(p, x_TD, H):
  T, D = x_TD.shape
  K = D // H
  q_THK, k_THK, v_THV = (dense(p, name, x_TD).reshape(T, H, -1) for name in ('query', 'key', 'value'))

  def turned(x_K, t):
    rates = 10_000.0 ** -np.linspace(0, 1, K // 2)
    pairs = (x_K[: K // 2] + 1j * x_K[K // 2 :]) * np.exp(1j * t * rates)
    return np.concatenate([pairs.real, pairs.imag])

  o_THV = np.zeros_like(v_THV)
  for h in range(H):
    state_KV = np.zeros((K, 2 * K))
    for t in range(T):
      state_KV = (1 - 2.0 ** (-5 - h)) * state_KV + np.outer(turned(k_THK[t, h], t), v_THV[t, h])
      o_THV[t, h] = root_mean_square(turned(q_THK[t, h], t) @ state_KV / math.sqrt(K))
  return dense(p, 'output', merged(o_THV) * silu(dense(p, 'gate', x_TD)))


def recalled(q_TK, k_TK, v_TV, beta_T, decay):
  """The delta rule of one head; `decay(t)` is what the state is multiplied by, a number or [K]."""
  state_KV, o_TV = np.zeros((q_TK.shape[1], v_TV.shape[1])), []
  for t in range(len(q_TK)):
    state_KV = np.reshape(decay(t), (-1, 1)) * state_KV
    state_KV = state_KV + beta_T[t] * np.outer(k_TK[t], v_TV[t] - k_TK[t] @ state_KV)
    o_TV.append(q_TK[t] @ state_KV)
  return np.array(o_TV)


def operands(p, x_TD, H):
  """Returns q, k, v [T, H, .] and beta [T, H] of a delta rule."""
  q, k, v = (projected(p, name, x_TD).reshape(len(x_TD), H, -1) for name in ('query', 'key', 'value'))
  q, k = (np.array([[unit(x_K) for x_K in x_HK] for x_HK in x]) for x in (q, k))
  return q, k, v, sigmoid(dense(p, 'beta', x_TD))


def of_each_head(run, *operands):
  """Returns [T, H, V] from run(h, operands of head h)."""
  H = operands[0].shape[1]
  return np.stack([run(h, *(operand[:, h] for operand in operands)) for h in range(H)], axis=1)


def undecayed(*operands):
  """DeltaNet's read, [T, H, V]."""
  return of_each_head(lambda h, *of_head: recalled(*of_head, lambda t: 1.0), *operands)


def kda(p, x_TD, H):
  def head(h, q_TK, k_TK, v_TV, beta_T):
    K = q_TK.shape[1]

    def decay(t):
      raw_K = dense(p, 'decay_up', dense(p, 'decay_down', x_TD[t]))[h * K : (h + 1) * K]
      return np.exp(-np.exp(p['log_rate'][h]) * softplus(raw_K + p['step_bias'][h]))

    return recalled(q_TK, k_TK, v_TV, beta_T, decay)

  o_THV = of_each_head(head, *operands(p, x_TD, H))
  gate_TD = sigmoid(dense(p, 'gate_up', dense(p, 'gate_down', x_TD)))
  return dense(p, 'output', merged(normalised(p, o_THV)) * gate_TD)


def filters(p, v_THV, *names):
  """Returns the values of all heads behind each filter, [T, H, V]."""
  return tuple(filtered(merged(v_THV), p[f'{name}_taps']).reshape(v_THV.shape) for name in names)


def mixed(x_TD, paths, weights):
  """Returns the sum over `paths`, each [T, H, V], weighted by weights(x_D, paths of that token [P, H, V]), [H, P]."""
  o_THV = np.zeros_like(paths[0])
  for t, x_D in enumerate(x_TD):
    at_PHV = np.array([path[t] for path in paths])
    o_THV[t] = np.einsum('hp,phv->hv', weights(x_D, at_PHV), at_PHV)
  return o_THV


def content_sharp_router(p, x_TD, H, published=False):
  q, k, v, beta = operands(p, x_TD, H)
  delta = undecayed(q, k, v, beta)
  short, long = filters(p, v, 'short', 'long')

  def weights(x_D, at_PHV):
    content = silu(dense(p, 'content', x_D))
    rows = []
    for h in range(H):
      seen = [value for path in at_PHV for value in (path[h].mean(), path[h].std(ddof=1))]
      features = np.concatenate([content, seen])
      sharp = softplus(p['sharpness'][h]) + 1e-4
      if published:  # logits of all heads, of which the first four are used
        rows.append(softmax(sharp * (features @ p['route'] + p['route_bias']))[:4])
      else:
        rows.append(softmax(sharp * (features @ p['route'][h] + p['route_bias'][h])))
    return np.array(rows)

  return dense(p, 'output', merged(normalised(p, mixed(x_TD, (short, long, delta, v), weights))))


def content_sharp_router_faithful(p, x_TD, H):
  return content_sharp_router(p, x_TD, H, published=True)


def retained_in_jumps(kept, q_TK, k_TK, v_TV, beta_T):
  """The published chunk form: U' = U - W S, O = Q S + tril(Q K^T) U', and S <- kept S + K^T U' every 32 tokens."""
  state_KV, o_TV = np.zeros((q_TK.shape[1], v_TV.shape[1])), []
  for first in range(0, len(q_TK), 32):
    q, k, v = (x[first : first + 32] for x in (q_TK, k_TK, v_TV))
    beta = beta_T[first : first + 32, None]
    inverse = np.linalg.inv(np.eye(len(q)) + np.tril((beta * k) @ k.T, -1))
    u = inverse @ (beta * v) - inverse @ (beta * k) @ state_KV
    o_TV += list(q @ state_KV + np.tril(q @ k.T) @ u)
    state_KV = kept * state_KV + k.T @ u
  return np.array(o_TV)


def fusion_gated_fir_net(p, x_TD, H, published=False):
  q, k, v, beta = operands(p, x_TD, H)
  kept_H = 0.6 + 0.4 * sigmoid(p['retention'])

  def head(h, *of_head):
    if published:
      return retained_in_jumps(kept_H[h], *of_head)
    return recalled(*of_head, lambda t: kept_H[h] ** (1 / 32))

  short, long = filters(p, v, 'short', 'long')

  def weights(x_D, at_PHV):
    features = np.concatenate([x_D, *(np.abs(path_HV).mean(-1) for path_HV in at_PHV)])
    z_HP = dense(p, 'gate', gelu(dense(p, 'gate_hidden', features))).reshape(H, 4) + p['gate_bias']
    return 0.02 + 0.98 * sigmoid(z_HP / np.exp(p['log_temperature'])[:, None])

  paths = (short, long, of_each_head(head, q, k, v, beta), v)
  return dense(p, 'output', merged(normalised(p, mixed(x_TD, paths, weights))))


def fusion_gated_fir_net_faithful(p, x_TD, H):
  return fusion_gated_fir_net(p, x_TD, H, published=True)


def four_statistics(path_HV):
  """Returns mean, deviation, mean size and length of each head in turn, [H, 4]."""
  return np.array([[o.mean(), o.std(), np.abs(o).mean(), math.sqrt(o @ o)] for o in path_HV])


def path_gate_fusion_net(p, x_TD, H):
  q, k, v, beta = operands(p, x_TD, H)
  delta = undecayed(q, k, v, beta)
  short, long = filters(p, v, 'short', 'long')
  y_THV = np.zeros_like(v)
  for t, x_D in enumerate(x_TD):
    seen = [four_statistics(path[t]).reshape(-1) for path in (short, long, delta, v)]
    copy_H = sigmoid(dense(p, 'copy', gelu(dense(p, 'copy_hidden', np.concatenate([x_D, *seen])))))
    which_HP = dense(p, 'context', gelu(dense(p, 'context_hidden', np.concatenate([x_D, *seen[:3]])))).reshape(H, 3)
    residual_H = sigmoid(p['residual_share']) * sigmoid(dense(p, 'residual', x_D))
    for h in range(H):
      copied = 0.955 * copy_H[h]
      m = softmax(which_HP[h] / (softplus(p['temperature'][h]) + 0.05))
      context = m[0] * short[t, h] + m[1] * long[t, h] + m[2] * delta[t, h]
      o_V = copied * v[t, h] + (1 - copied) * context + residual_H[h] * short[t, h]
      features = np.concatenate([x_D, four_statistics(o_V[None])[0], (1 - copied) * m, [copied]])
      hidden = gelu(features @ p['output_gate_hidden'] + p['output_gate_hidden_bias'])
      y_THV[t, h] = 4 * sigmoid(dense(p, 'output_gate', hidden)) * root_mean_square(o_V) * p['norm']['scale']
  return dense(p, 'output', merged(y_THV))


def hier_gate_net(p, x_TD, H):
  q, k, v, beta = operands(p, x_TD, H)
  delta = undecayed(q, k, v, beta)
  short, long = filters(p, v, 'short', 'long')

  def weights(x_D, at_PHV):
    rows = []
    for h in range(H):
      macro, local, floor = (
        dense(p, name, x_D).reshape(H, -1)[h] + p[f'{name}_bias'][h] for name in ('global', 'local', 'floor')
      )
      a = sigmoid(macro)
      shares = np.concatenate([a, (1 - a) * softmax(local / softplus(p['temperature'][h]))])
      floors = 0.2 * sigmoid(floor)
      rows.append(shares * (1 - floors.sum()) + floors)
    return np.array(rows)

  return dense(p, 'output', merged(normalised(p, mixed(x_TD, (delta, v, short, long), weights))))


def ada_multi_path_gate_net(p, x_TD, H):
  return dense(p, 'output', merged(normalised(p, mixed(x_TD, *_ada_paths_and_weights(p, x_TD, H)))))


def ada_entropy(p, x_TD, H):
  """Returns the mean entropy of the weights over tokens and heads."""
  paths, weights = _ada_paths_and_weights(p, x_TD, H)
  w_THP = np.array([weights(x_D, np.array([path[t] for path in paths])) for t, x_D in enumerate(x_TD)])
  return -(w_THP * np.log(w_THP)).sum(-1).mean()


def _ada_paths_and_weights(p, x_TD, H):
  q, k, v, beta = operands(p, x_TD, H)
  delta = undecayed(q, k, v, beta)

  def weights(x_D, at_PHV):
    features = np.concatenate([x_D, *(four_statistics(path_HV).reshape(-1) for path_HV in at_PHV)])
    of_token_HP = dense(p, 'gate', gelu(dense(p, 'gate_hidden', features))).reshape(H, 5)
    z_HP = p['global_bias'] + p['head_bias'] + of_token_HP
    return np.array([0.9 * softmax(z_HP[h] / (softplus(p['temperature'][h]) + 0.5)) + 0.02 for h in range(H)])

  return (*filters(p, v, 'short', 'middle', 'long'), delta, v), weights


REFERENCES = {
  function.__name__: function
  for function in (
    mamba2,
    gla,
    retnet,
    kda,
    content_sharp_router,
    content_sharp_router_faithful,
    fusion_gated_fir_net,
    fusion_gated_fir_net_faithful,
    path_gate_fusion_net,
    hier_gate_net,
    ada_multi_path_gate_net,
  )
}
