/// \file
/// The only header that a C++ program needs to train with Zeropage:
///
///     #include <zeropage/zeropage.h>
///     auto engine = zeropage::initialize(*model, zeropage::Config::from_file("ds_config.json"));
///     for (auto& batch : *loader) {
///       auto loss = model->forward(batch.data, batch.target);  // the user's own module; no wrapper
///       engine.backward(loss);
///       engine.step();
///     }
///
/// Ranks are started by `zeropage --num_gpus=2 --no_python ./program`, torchrun, mpirun or srun. docs/cpp.md is a
/// tutorial from an empty folder to two ranks.
#pragma once

#include "zeropage/base/error.h"
#include "zeropage/base/exit_code.h"
#include "zeropage/cpp/config.h"
#include "zeropage/cpp/engine.h"
#include "zeropage/cpp/init.h"
#include "zeropage/cpp/plan.h"
#include "zeropage/cpp/report.h"
#include "zeropage/cpp/version.h"
