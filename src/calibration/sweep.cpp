#include "calibration/sweep.hpp"

#include <algorithm>
#include <cmath>

#include "calibration/numbers.hpp"
#include "calibration/rows.hpp"

namespace sale::calibration {
namespace {

std::span<const float> layer_part(const std::vector<float>& of_all, const Layer& layer) {
  const auto heads = static_cast<size_t>(layer.shape.q_heads);
  return std::span(of_all).subspan(static_cast<size_t>(layer.number) * heads, heads);
}

// What the tries keep for the sampled rows of every head.
struct Kept {
  size_t rows;             // of a head
  std::vector<Bits> bits;  // [tries, q_heads, rows]
  Bits& at(size_t t, size_t heads, size_t h, size_t i) { return bits[(t * heads + h) * rows + i]; }
};

}  // namespace

void sweep(const Layer& layer, Stage& stage, const Tries& tries, const Sampling& sampling, ThreadPool& pool,
           Measured& to) {
  const auto heads = static_cast<size_t>(layer.shape.q_heads);
  std::vector<std::vector<int64_t>> rows;
  rows.reserve(heads);
  for (size_t h = 0; h < heads; ++h)
    rows.push_back(sample_rows(sampling.seed, layer.number, static_cast<int32_t>(h), layer.tokens, sampling.rows));
  const size_t sampled = rows[0].size();
  for (std::vector<int64_t>& of_head : rows)
    of_head.insert(of_head.end(), sampling.asking.begin(), sampling.asking.end());
  std::vector<int64_t> tile_of(heads * rows[0].size());  // the first row of each row's tile
  Kept kept{rows[0].size(), std::vector<Bits>(tries.size() * heads * rows[0].size())};
  Measured found(tries.size(), heads);

  for (size_t t = 0; t < tries.size(); ++t) {
    const Stage::Selected s = stage.select(layer_part(tries[t], layer));
    const int64_t q_block = s.blocks.q_block();
    const Stage::Kept words = stage.kept(s);
    if (sampling.cost && t % 4 == 0) {
      const Stats attend = stage.attend(s);
      const int64_t tiles = (layer.tokens + q_block - 1) / q_block;
      const double rows_of_blocks = static_cast<double>(tiles) * static_cast<double>(heads);
      found.cost.add(rows_of_blocks, static_cast<double>(attend.kept_blocks), attend.attend_s);
      if (t == 0) found.rows_of_blocks = rows_of_blocks;
    }
    for (size_t h = 0; h < heads; ++h) {
      found.of[t][h].kept = s.stats.heads[h].kept_blocks, found.of[t][h].visible = s.stats.heads[h].visible_blocks;
      for (size_t i = 0; i < kept.rows; ++i) {
        const int64_t tile = rows[h][i] / q_block;
        const std::span<const uint64_t> row = words.row(static_cast<int64_t>(h), tile);
        tile_of[h * kept.rows + i] = tile * q_block;
        kept.at(t, heads, h, i).assign(row.begin(), row.end());
      }
    }
  }

  std::vector<ExactRow> exact(static_cast<size_t>(pool.threads()));
  std::vector<double> sizes(heads * kept.rows);
  std::vector<ExactRow::Loss> losses(kept.bits.size());  // as kept
  const auto group = static_cast<size_t>(layer.shape.group());
  KvHead held;
  for (int32_t kv_head = 0; kv_head < layer.shape.kv_heads; ++kv_head) {
    held.take(layer, kv_head, pool);
    const Means means = sampling.compensate ? Means(held) : Means();
    share_out(pool, static_cast<int64_t>(group * kept.rows), [&](int64_t item, int thread) {
      const size_t h = static_cast<size_t>(kv_head) * group + static_cast<size_t>(item) / kept.rows;
      const size_t i = static_cast<size_t>(item) % kept.rows, place = h * kept.rows + i;
      ExactRow& row = exact[static_cast<size_t>(thread)];
      row.compute(layer, held, static_cast<int32_t>(h), rows[h][i], sampling.compensate ? &means : nullptr);
      sizes[place] = row.size();
      for (size_t t = 0; t < tries.size(); ++t)
        losses[t * heads * kept.rows + place] = row.loss(kept.at(t, heads, h, i), tile_of[place]);
    });
  }

  // Sampled rows and rows that are asked for, each by themselves: among all rows the few of the second kind would count
  // for nothing, and they are where answers come from.
  const auto judge = [&](size_t from, size_t to_row, bool of_text) {
    if (from == to_row) return;
    std::vector<double> size(heads);
    double layer_size = 0;
    for (size_t h = 0; h < heads; ++h) {
      for (size_t i = from; i < to_row; ++i) size[h] += sizes[h * kept.rows + i];
      layer_size += size[h] / static_cast<double>(heads);
    }
    // A head, or a layer, that puts out nothing loses nothing.
    const auto share = [](double error, double of) { return of > 0 ? error / of : 0; };
    for (size_t t = 0; t < tries.size(); ++t)
      for (size_t h = 0; h < heads; ++h) {
        Point& p = found.of[t][h];
        double error = 0;
        for (size_t i = from; i < to_row; ++i) {
          const ExactRow::Loss& l = losses[(t * heads + h) * kept.rows + i];
          error += l.error;
          if (of_text) p.mass += l.mass / static_cast<double>(to_row - from);
        }
        p.error = std::max(p.error, share(error, layer_size));
        p.relative = std::max(p.relative, share(error, size[h]));
      }
  };
  judge(0, sampled, true);
  judge(sampled, kept.rows, false);
  for (size_t t = 0; t < tries.size(); ++t)
    for (size_t h = 0; h < heads; ++h) to.of[t][static_cast<size_t>(layer.number) * heads + h] = found.of[t][h];
  to.cost.add(found.cost);
  to.rows_of_blocks += found.rows_of_blocks;
}

void halve(const Layer& layer, Stage& stage, double theta, ThreadPool& pool, std::vector<float>& thresholds) {
  const Shape& s = layer.shape;
  std::vector<std::byte> dense, sparse;
  stage.run({}, dense);
  std::vector<float> taus(layer_part(thresholds, layer).begin(), layer_part(thresholds, layer).end());
  std::vector<double> per_token(taus.size());
  for (bool again = true; again;) {
    stage.run(taus, sparse);
    share_out(pool, s.q_heads, [&](int64_t h, int) {
      double error = 0;
      with_type(s.dtype, dense.data(), [&](const auto* exact) {
        const auto* out = reinterpret_cast<decltype(exact)>(sparse.data());
        for (int64_t i = 0; i < layer.tokens; ++i)
          for (int64_t c = 0; c < s.head_dim; ++c) {
            const auto at = static_cast<size_t>((i * s.q_heads + h) * s.head_dim + c);
            error += std::fabs(static_cast<double>(static_cast<float>(out[at])) -
                               static_cast<double>(static_cast<float>(exact[at])));
          }
      });
      per_token[static_cast<size_t>(h)] = error / static_cast<double>(layer.tokens);
    });
    again = false;
    for (size_t h = 0; h < taus.size(); ++h) {
      require(std::isfinite(per_token[h]), "layer ", layer.number, ": the attention of query head ", h,
              " is not finite; q, k and v of finite numbers are needed");
      if (taus[h] == 0 || per_token[h] <= theta) continue;
      taus[h] = taus[h] / 2 < halving_least ? 0 : taus[h] / 2;
      again = true;
    }
  }
  std::copy(taus.begin(), taus.end(),
            thresholds.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(layer.number) * taus.size()));
}

}  // namespace sale::calibration
