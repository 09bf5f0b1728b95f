"""Functions that a written source may hold, as text: the writer copies those that its lines call."""

# Functions that a section may call, in the order in which they are written: name -> text.
HELPERS = {
  'split_heads': """
def split_heads(x_BTX, heads):
  return rearrange(x_BTX, 'b t (h x) -> b t h x', h=heads)
""",
  'join_heads': """
def join_heads(x_BTHX):
  return rearrange(x_BTHX, 'b t h x -> b t (h x)')
""",
  'near_identity': """
def near_identity(noise):
  \"\"\"Initialises causal filters as a copy of the present token (the last tap) plus noise.\"\"\"

  def init(key, shape):
    return (noise * jax.random.normal(key, shape)).at[-1].add(1.0)

  return init
""",
  'identity_taps': """
def identity_taps(key, shape):
  \"\"\"Initialises causal filters as a copy of the present token (the last tap).\"\"\"
  return jnp.zeros(shape).at[-1].set(1.0)
""",
  'fading_taps': """
def fading_taps(key, shape):
  \"\"\"Initialises causal filters as a mean whose weights fade with the lag; the last tap is the present token.\"\"\"
  lag_W = jnp.arange(shape[0])[::-1]
  weight_W = nn.softmax(-4.0 * lag_W / shape[0])
  return jnp.broadcast_to(weight_W[:, None, None], shape)
""",
  'log_rates': """
def log_rates(shortest, longest):
  \"\"\"Initialises log rates of fading: time constants, in tokens, spread evenly between two on a log scale.\"\"\"

  def init(key, shape):
    count = math.prod(shape)
    share = (jnp.arange(count) + 0.5) / count
    return -(math.log(shortest) + share * math.log(longest / shortest)).reshape(shape)

  return init
""",
  'identity_matrix': """
def identity_matrix(key, shape):
  return jnp.eye(shape[0])
""",
  'favouring': """
def favouring(*bias_P):
  \"\"\"Initialises the router's biases: one per path, the same for all heads.\"\"\"

  def init(key, shape, dtype=jnp.float32):
    return jnp.tile(jnp.asarray(bias_P, dtype), shape[0] // len(bias_P))

  return init
""",
  'bounded': """
def bounded(k_BTHK):
  \"\"\"Scales vectors to a length below one; small ones stay small.\"\"\"
  return k_BTHK / jnp.sqrt(1 + jnp.sum(k_BTHK**2, axis=-1, keepdims=True))
""",
  'sum_normalise': """
def sum_normalise(k_BTHK):
  \"\"\"Scales vectors so that the sizes of their entries sum to one.\"\"\"
  return k_BTHK / (jnp.sum(jnp.abs(k_BTHK), axis=-1, keepdims=True) + 1e-6)
""",
  'rotate': """
def rotate(x_BTHK):
  \"\"\"Rotates pairs of channels by an angle that grows with the position: products then see relative positions.\"\"\"
  T, half = x_BTHK.shape[1], x_BTHK.shape[-1] // 2
  angle_T1F = jnp.arange(T)[:, None, None] * ROTARY_BASE ** (-jnp.arange(half) / max(half, 1))
  cos_T1F, sin_T1F = jnp.cos(angle_T1F), jnp.sin(angle_T1F)
  a_BTHF, b_BTHF, rest = jnp.split(x_BTHK, [half, 2 * half], axis=-1)
  turned = [a_BTHF * cos_T1F - b_BTHF * sin_T1F, a_BTHF * sin_T1F + b_BTHF * cos_T1F, rest]
  return jnp.concatenate(turned, axis=-1).astype(x_BTHK.dtype)
""",
  'fading_sum': """
def fading_sum(q_BTHK, k_BTHK, v_BTHV, log_decay_H):
  \"\"\"Linear attention that fades: o_t = sum over s <= t of exp((t - s) log_decay) (q_t . k_s) v_s.

  In chunks: inside a chunk by a masked product, between chunks by one state per head.
  \"\"\"
  B, T, H, V = v_BTHV.shape
  C, K = CHUNK, k_BTHK.shape[-1]
  pad = ((0, 0), (0, -T % C), (0, 0), (0, 0))
  q_BNCHK, k_BNCHK, v_BNCHV = (
    rearrange(jnp.pad(x.astype(jnp.float32), pad), 'b (n c) h x -> b n c h x', c=C) for x in (q_BTHK, k_BTHK, v_BTHV)
  )
  at_C = jnp.arange(C)
  lag_CC = at_C[:, None] - at_C[None, :]
  fade_HCC = jnp.where(lag_CC >= 0, jnp.exp(log_decay_H[:, None, None] * jnp.maximum(lag_CC, 0)), 0.0)
  score_BNHCC = jnp.einsum('bnchk,bnshk->bnhcs', q_BNCHK, k_BNCHK) * fade_HCC
  inside_BNCHV = jnp.einsum('bnhcs,bnshv->bnchv', score_BNHCC, v_BNCHV)

  to_end_CH1 = jnp.exp(log_decay_H * (C - 1 - at_C)[:, None])[..., None]
  added_NBHKV = jnp.einsum('bnchk,bnchv->nbhkv', k_BNCHK * to_end_CH1, v_BNCHV)
  chunk_decay_H11 = jnp.exp(C * log_decay_H)[:, None, None]

  def step(state_BHKV, added_BHKV):
    return chunk_decay_H11 * state_BHKV + added_BHKV, state_BHKV

  _, before_NBHKV = jax.lax.scan(step, jnp.zeros((B, H, K, V)), added_NBHKV)
  from_start_CH1 = jnp.exp(log_decay_H * (at_C + 1)[:, None])[..., None]
  across_BNCHV = jnp.einsum('bnchk,nbhkv->bnchv', q_BNCHK * from_start_CH1, before_NBHKV)
  o_BTHV = rearrange(inside_BNCHV + across_BNCHV, 'b n c h v -> b (n c) h v')[:, :T]
  return o_BTHV.astype(v_BTHV.dtype)
""",
}
