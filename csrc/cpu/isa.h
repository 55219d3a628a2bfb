// The files that include this one are compiled once per instruction set, each time into a namespace of its own, so that
// one library runs anywhere and picks its hot loops at run time (dispatch.cpp). They use no function of the C++ library
// that could be emitted out of line: the linker keeps one copy of such a function, and that copy might hold
// instructions the processor at hand lacks.
#pragma once

#ifndef HYPERSIMPLEX_ISA
#define HYPERSIMPLEX_ISA baseline
#endif
