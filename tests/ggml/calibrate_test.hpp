#pragma once

// Makes a calibration by way of the plugin and compares it with the library's own; 0 when they are equal.
int calibrate_by_the_plugin(const char* file);
