/// \file
/// See context.h.
#pragma once
