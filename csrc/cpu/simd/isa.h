// The files that include this one are compiled once per instruction set, each time into a namespace of its own, so that
// one library runs anywhere and picks its hot loops at run time (dispatch.cpp). Of the C++ library they use only small
// functions that are inlined everywhere: of one that is emitted the linker keeps a single copy, and that copy might
// hold instructions the processor at hand lacks.
#pragma once

#ifndef HYPERSIMPLEX_ISA
#define HYPERSIMPLEX_ISA baseline
#endif
