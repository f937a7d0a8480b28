// Pieces of the HTML report.
#pragma once

#include <string>

#include "lab/answers.hpp"

namespace sale::lab {

std::string report_style();
// Bars of time, one per way of running: rest of the model, index, select, attend.
std::string time_bars(const Findings& f);
std::string answers_table(const Findings& f);
// Density of every head, layers downwards.
std::string heat_table(const Findings& f);
// Kept blocks of a few heads worth looking at.
std::string head_pictures(const Findings& f);

}  // namespace sale::lab
