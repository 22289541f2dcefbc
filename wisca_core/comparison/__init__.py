"""Paired training comparisons: the same seeds with and without a rescale, and what their differences allow one to say.

spec -> folder -> cells (arm x learning rate x seed), trained side by side -> statistics. Everything a comparison is
lies in its folder; whoever shows it only reads.

What a rescale can do to a training, and so what the arms are about
--------------------------------------------------------------------
Let W be a matrix of a pair and let it be kept as cW, c > 0, its partner divided by c, so that the function is
unchanged; let the optimiser's state be carried along. Then

1. the gradient of cW is g / c, because the loss is the same function of the product;
2. Adam's direction M / (sqrt(V) + eps) of g / c is that of g with the epsilon c eps: the scale cancels in M over
   sqrt(V);
3. cW therefore moves by lr M / (sqrt(V) + c eps), and W itself by 1 / c of it: W trains at the rate lr / c;
4. a decoupled decay takes lr wd (cW) from cW, lr wd W from W: at the rate lr / c that is the decay wd c;
5. in the norm that clipping looks at, W counts with g / c.

Nothing else differs, so balancing a pair every N steps *is* a training with other learning rates: c = sqrt(|Wk| / |Wq|)
for Wq, 1 / c for Wk, that is Wq's rate times m = sqrt(|Wq| / |Wk|) and Wk's over m, renewed every N steps, and the same
of Wo over Wv. With g query heads a KV head L1 begins at m = sqrt(g). Where the step goes with the gradient (SGD) the
rate goes as m squared; where it has no scale at all (Muon, Lion) as m. It is assumed that every tensor of a side
follows (biases, gains), that the state is carried exactly and that arithmetic is exact: in float32 training magnifies
rounding, which parts two runs that are equal in law. ``training.rates`` trains so and says the rule of each optimiser;
arms of kind "rates" are compared here with the rescale itself.

Neighbours: rates per matrix for grouped queries under muP (arXiv:2605.15290); a weight decay that keeps the gain of
sub-layers while widths and rates change (arXiv:2510.15262); J. Kim, "When Equivalent Weights Train Differently"; LoRA+
(arXiv:2402.12354), whose ratio of B's rate to A's is what balancing A and B sets, the other way round while B is small;
LAMB's trust ratio (arXiv:1904.00962), a rate per tensor that follows its norm; QK-clip, which scales Wq and Wk down
where logits grow (arXiv:2507.20534); Gram balance (arXiv:2605.31484), a full change of basis and so no set of rates.

Two corrections to what is often said: that balancing only at the start keeps 97 % of it is true of the score; of the
*gain* in the paper's table it is .024 of .040, 60 %. And GaugeFix's gain is that of one seed, on learnable multipliers.
The paper's three models have 8, 6 and 1 query heads a KV head: at 1 a balance begins as nothing, yet all three are
reported to improve.
"""
