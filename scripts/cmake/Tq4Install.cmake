# What `cmake --install` puts where: the library, its headers and a package config, so that another project writes
# find_package(tq4) and links tq4::tq4. Component `dev`; the program is the default component.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/tq4)
install(TARGETS tq4 EXPORT tq4Targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/src/tq4 DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT dev FILES_MATCHING PATTERN "*.h")
install(EXPORT tq4Targets NAMESPACE tq4:: DESTINATION ${package_dir} COMPONENT dev)
set(TQ4_PACKAGE_CUDA ${TQ4_HAS_CUDA})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/tq4Config.cmake.in ${PROJECT_BINARY_DIR}/tq4Config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tq4ConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tq4Config.cmake ${PROJECT_BINARY_DIR}/tq4ConfigVersion.cmake DESTINATION ${package_dir} COMPONENT dev)
