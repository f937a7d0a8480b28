/* What a client does that was built on the header of the version before: older/sale/sale.h. Its structs end where it knew
 * them to end. */
#include "older_client.h"

#include <stdlib.h>

#include "sale/sale.h"

size_t older_problem_size(void) { return sizeof(sale_problem); }
size_t older_call_size(void) { return sizeof(sale_call); }

int older_attention(const struct older_tensors* t) {
  sale_problem problem = sale_problem_init(t->q_heads, t->kv_heads, t->head_dim, SALE_BF16, t->tokens, t->tokens);
  sale_layer layer = sale_layer_init(t->q_heads, t->kv_heads, t->head_dim, SALE_BF16);
  sale_options options = sale_options_init();
  sale_call call = sale_call_init();
  sale_estimator* estimator = NULL;
  sale_plan* plan = NULL;
  sale_workspace workspace;
  int status;
  void* memory = NULL;
  options.dense_below = 0;
  status = (int)sale_estimator_create(&layer, &estimator);
  if (status != SALE_OK) return status;
  status = (int)sale_plan_create(&problem, &options, (const sale_estimator* const*)&estimator, 1, &plan);
  workspace.struct_size = sizeof workspace;
  if (status == SALE_OK) status = (int)sale_plan_workspace(plan, &workspace);
  if (status == SALE_OK) {
    memory = aligned_alloc(64, workspace.total);
    call.q = t->q;
    call.k = t->k;
    call.v = t->v;
    call.out = t->out;
    call.workspace = memory;
    call.workspace_bytes = workspace.total;
    status = (int)sale_run(plan, estimator, &call);
  }
  free(memory);
  sale_plan_destroy(plan);
  sale_estimator_destroy(estimator);
  return status;
}
