# What the demo reckons from what it recorded. Inputs are the records; it decides
# nothing.

# The least value that at least the share $p of all are not above.
# In: [[value, count]...] by value. Out: number, or null when there is none.
def quantile($p):
    (map(.[1]) | add // 0) as $n
    | ($n * $p | ceil) as $rank
    | if $n == 0 then null
      else first(foreach .[] as $b ({seen: 0}; .seen += $b[1] | .value = $b[0]; select(.seen >= $rank) | .value))
      end;

# In: [[value, count]...] in any order. Out: {p50, p99, n}.
def summary:
    group_by(.[0]) | map([.[0][0], (map(.[1]) | add)])
    | {p50: quantile(0.5), p99: quantile(0.99), n: (map(.[1]) | add // 0)};

# In: numbers. Out: {p50, p99, n}.
def summary_of_values: map([., 1]) | summary;

# In: the servers' `show stats`. Out: {p50, p99, n} over all of them.
def distribution($name): [.[].dht.distributions[$name].buckets[]?] | summary;

# "20.1.1.1:40000-192.168.0.1:80", "[2001:db8::1]:40000-[...]:80" -> 40000
def client_port: capture("^(\\[[^]]*\\]|[^:]*):(?<port>[0-9]+)-").port | tonumber;

# In: [{locator, lookups}] of the servers; the lookups after the failure that sent
# the flow elsewhere. Out: [{port, asked_at_unix_us, duration_us, by, owner}].
def redirecting($from_unix_us; $to_unix_us):
    [.[] | .locator as $by | .lookups[]
        | select(.outcome == "owner" and .owner != $by)
        | select(.asked_at_unix_us >= $from_unix_us and .asked_at_unix_us <= $to_unix_us)
        | {port: (.flow | client_port), asked_at_unix_us, duration_us, by: $by, owner}];

# In: redirecting lookups. Out: the first of each session.
def first_per_session: group_by(.port) | map(min_by(.asked_at_unix_us));
